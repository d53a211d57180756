import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  type Accelerator,
  coloCapabilities,
  judgeQemu,
  parseVersion,
} from "../../engine/vm/suitability.ts";

const CAPABILITIES = ["return-path", "x-colo"];

/** Version, whether a primary under TCG, under KVM, a secondary, and what to set. */
const ROWS: readonly (readonly [string, boolean, boolean, boolean, readonly string[]])[] = [
  ["6.2.0", false, false, false, ["x-colo"]],
  ["7.0.0", false, true, true, ["x-colo"]],
  ["7.2.22", false, true, true, ["x-colo"]],
  ["8.2.0", false, true, true, ["x-colo"]],
  ["9.2.4", false, true, true, ["x-colo"]],
  ["10.0.0", false, false, true, ["x-colo"]],
  ["10.0.2", false, false, true, ["x-colo"]],
  ["10.0.3", false, false, true, ["x-colo"]],
  ["10.0.12", false, false, true, ["x-colo"]],
  ["10.0.13", false, true, true, ["x-colo"]],
  ["10.0.14", false, true, true, ["x-colo"]],
  ["10.1.0", false, false, true, ["x-colo"]],
  ["10.2.92", false, false, true, ["x-colo"]],
  ["11.0.0", true, true, true, CAPABILITIES],
  ["11.1.3", true, true, true, CAPABILITIES],
  ["12.0.0", true, true, true, CAPABILITIES],
];

for (const [version, tcg, kvm, secondary, capabilities] of ROWS) {
  Deno.test(`judgeQemu() judges QEMU ${version}`, () => {
    const judge = (accel: Accelerator) => judgeQemu({ version, capabilities: CAPABILITIES, accel });
    assertEquals(judge("tcg").primary.ok, tcg, "primary under TCG");
    assertEquals(judge("kvm").primary.ok, kvm, "primary under KVM");
    assertEquals(judge("tcg").secondary.ok, secondary, "secondary under TCG");
    assertEquals(judge("kvm").secondary.ok, secondary, "secondary under KVM");
    assertEquals(coloCapabilities(version), capabilities);
  });
}

Deno.test("judgeQemu() says why an old primary is refused", () => {
  const reason = (version: string) =>
    judgeQemu({ version, capabilities: CAPABILITIES, accel: "tcg" }).primary.reason;
  assertStringIncludes(reason("7.2.22"), "deadlocks");
  assertStringIncludes(reason("10.0.2"), "instead of entering COLO");
  assertStringIncludes(reason("10.0.13"), "deadlocks");
});

Deno.test("judgeQemu() refuses both sides to a QEMU without COLO's capabilities", () => {
  const accel = "tcg";
  const without = judgeQemu({ version: "11.1.3", capabilities: ["return-path", "xbzrle"], accel });
  assert(!without.primary.ok && !without.secondary.ok);
  assertStringIncludes(without.secondary.reason, "x-colo");
  const old = judgeQemu({ version: "7.2.0", capabilities: ["x-colo"], accel });
  assert(old.secondary.ok, "an old QEMU is used without return-path");
});

Deno.test("judgeQemu() refuses a version that it cannot read", () => {
  const verdict = judgeQemu({ version: "unknown", capabilities: CAPABILITIES, accel: "kvm" });
  assert(!verdict.primary.ok && !verdict.secondary.ok);
});

Deno.test("judgeQemu() finds a primary under TCG a primary under KVM too", () => {
  fc.assert(fc.property(fc.tuple(fc.nat(13), fc.nat(12), fc.nat(25)), (parts) => {
    const judge = (accel: Accelerator) =>
      judgeQemu({ version: parts.join("."), capabilities: CAPABILITIES, accel });
    return !judge("tcg").primary.ok || judge("kvm").primary.ok;
  }));
});

Deno.test("parseVersion() reads what `--version` prints", () => {
  assertEquals(parseVersion("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), [7, 2, 22]);
  assertEquals(parseVersion("QEMU emulator version 11.1"), [11, 1, 0]);
  assertEquals(parseVersion("no version"), undefined);
});
