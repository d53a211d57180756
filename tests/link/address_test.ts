import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { ConfigError } from "../../engine/errors.ts";
import { formatAddress, parseAddress } from "../../engine/link/address.ts";

Deno.test("parseAddress reads what formatAddress writes", () => {
  for (const text of ["127.0.0.1:7700", "127.1.2.3:1", "[::1]:65535", "unix:/run/a b:1.sock"]) {
    assertEquals(formatAddress(parseAddress(text)), text);
  }
  assertEquals(parseAddress("[::1]:7700"), { transport: "tcp", hostname: "::1", port: 7700 });
  assertEquals(parseAddress("unix:/run/a"), { transport: "unix", path: "/run/a" });
});

Deno.test("parseAddress refuses what is no address", () => {
  const bad = ["", "7700", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:7700"];
  for (const text of [...bad, "127.0.0.1:7700x", "[::1]7700", "[::1:7700", " :1"]) {
    assertThrows(
      () => parseAddress(text),
      ConfigError,
      `Cannot use address "${text}": write it as 127.0.0.1:7700, [::1]:7700 or unix:/path`,
    );
  }
  for (const text of ["127.0.0.256:1", "127.999.0.1:1", "127.0.0.1.1:1"]) {
    assertThrows(() => parseAddress(text), ConfigError, `Cannot use address "${text}": `);
  }
  assertThrows(() => parseAddress("unix:"), ConfigError, "the path is missing");
  assertThrows(() => parseAddress("a\nb"), ConfigError, 'Cannot use address "a\\nb": write it as');
});

Deno.test("parseAddress says through its caller what is wrong", () => {
  const fail = (detail: string): never => {
    throw new RangeError(detail);
  };
  assertThrows(() => parseAddress("7700", fail), RangeError, "write it as 127.0.0.1:7700");
});

Deno.test("parseAddress refuses addresses of other machines unless they are asked for", () => {
  for (
    const text of ["10.0.0.2:7700", "0.0.0.0:7700", "[::]:7700", "[fe80::1]:1", "example.org:1"]
  ) {
    assertThrows(() => parseAddress(text), ConfigError, "the link is not encrypted");
    assertEquals(formatAddress(parseAddress(text, undefined, "network")), text);
  }
  const none = ["7700", "10.0.0.256:1", "unix:"];
  for (const text of none) {
    assertThrows(() => parseAddress(text, undefined, "network"), ConfigError, "Cannot use address");
  }
});
