import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { ConfigError } from "../../engine/errors.ts";
import { formatAddress } from "../../engine/proxy/flow.ts";
import { compileFlowRules, type FlowRule, parseAddress } from "../../engine/proxy/flow_rules.ts";

const flow = {
  source: parseAddress("10.1.2.3"),
  destination: parseAddress("192.168.7.9"),
  protocol: 6,
  sourcePort: 80,
  destinationPort: 4000,
};

const matches = (rule: FlowRule, changes: Partial<typeof flow> = {}) =>
  compileFlowRules([rule])({ ...flow, ...changes });

Deno.test("compileFlowRules() matches what a rule names, and leaves the rest open", () => {
  assert(matches({}));
  assert(matches({ protocol: "tcp", source: "10.1.2.3", sourcePort: 80 }));
  assert(matches({ destination: "192.168.7.9", destinationPort: 4000, protocol: 6 }));
  assert(!matches({ protocol: "udp" }));
  assert(!matches({ sourcePort: 81 }));
  assert(!matches({ destinationPort: 80 }));
  assert(!matches({ source: "10.1.2.4" }));
  assert(matches({ protocol: "icmp" }, { protocol: 58 }));
  assert(!compileFlowRules([])(flow));
  assert(compileFlowRules([{ protocol: "udp" }, { sourcePort: 80 }])(flow));
});

Deno.test("compileFlowRules() takes prefixes of any length", () => {
  for (const bits of [0, 1, 7, 8, 9, 24, 30]) assert(matches({ source: `10.1.2.1/${bits}` }));
  assert(!matches({ source: "10.1.2.1/31" }));
  assert(!matches({ source: "::/0" }));
  const source = parseAddress("fd00:1:2::9");
  assert(matches({ source: "fd00:1::/32" }, { source }));
  assert(matches({ source: "fd00:1:2::8/127" }, { source }));
  assert(!matches({ source: "fd00:1:2::8/128" }, { source }));
  assert(!matches({ source: "0.0.0.0/0" }, { source }));
});

Deno.test("compileFlowRules() refuses rules that make no sense", () => {
  const wrong: readonly FlowRule[] = [
    { protocol: 256 },
    { protocol: 1.5 },
    { sourcePort: 65536 },
    { destinationPort: -1 },
    { source: "10.0.0" },
    { source: "10.0.0.256" },
    { source: "10.0.0.1/33" },
    { source: "10.0.0.1/" },
    { source: "10.0.0.1/8/8" },
    { destination: "fd00::1::2" },
    { destination: "1:2:3:4:5:6:7" },
    { destination: "1:2:3:4:5:6:7:8:9" },
    { destination: "1:2:3:4::5:6:7:8" },
    { destination: "12345::" },
    { destination: "::/129" },
    { destination: "" },
    { destination: "example.org" },
  ];
  for (const rule of wrong) {
    assertThrows(() => compileFlowRules([rule]), ConfigError, "Cannot use", JSON.stringify(rule));
  }
});

Deno.test("addresses are read as they are written", () => {
  const texts = [
    "0.0.0.0",
    "255.255.255.255",
    "::",
    "::1",
    "fd00::",
    "1:2:3:4:5:6:7:8",
    "a::b:0:0:c",
  ];
  for (const text of texts) assertEquals(formatAddress(parseAddress(text)), text);
  assertEquals(parseAddress("::ffff:10.0.0.1").slice(10), Uint8Array.of(255, 255, 10, 0, 0, 1));
  const byte = fc.oneof(fc.constant(0), fc.nat(255));
  const address = fc.oneof(
    fc.uint8Array({ minLength: 4, maxLength: 4 }),
    fc.array(byte, { minLength: 16, maxLength: 16 }).map((bytes) => Uint8Array.from(bytes)),
  );
  fc.assert(fc.property(address, (bytes) => {
    assertEquals(parseAddress(formatAddress(bytes)), Uint8Array.from(bytes));
  }));
});
