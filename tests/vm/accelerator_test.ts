import { assertEquals } from "@std/assert/mod.js";
import { chooseAccelerator } from "../../engine/vm/accelerator.ts";

const AMD = "processor\t: 0\nflags\t\t: fpu vme svm sse4a\n";
const INTEL = "processor\t: 0\nflags\t\t: fpu vme vmx\nvmx flags\t: vnmi\n";
const PLAIN = "processor\t: 0\nmodel name\t: vmx-svm 3000\nflags\t\t: fpu vme svmx\n";

Deno.test("chooseAccelerator() takes KVM where the processor and the device allow it", () => {
  assertEquals(chooseAccelerator({ cpuinfo: AMD, kvmOpens: true }).accel, "kvm");
  assertEquals(chooseAccelerator({ cpuinfo: INTEL, kvmOpens: true }).accel, "kvm");
});

Deno.test("chooseAccelerator() does not trust the presence of /dev/kvm", () => {
  const choice = chooseAccelerator({ cpuinfo: PLAIN, kvmOpens: true });
  assertEquals(choice, { accel: "tcg", reason: "the processor shows neither svm nor vmx" });
});

Deno.test("chooseAccelerator() takes TCG where /dev/kvm does not open", () => {
  assertEquals(chooseAccelerator({ cpuinfo: AMD, kvmOpens: false }).accel, "tcg");
});

Deno.test("chooseAccelerator() does as it is told", () => {
  assertEquals(chooseAccelerator({ told: "kvm", cpuinfo: PLAIN, kvmOpens: false }).accel, "kvm");
  assertEquals(chooseAccelerator({ told: "tcg", cpuinfo: AMD, kvmOpens: true }).accel, "tcg");
});
