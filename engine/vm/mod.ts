/**
 * QEMU as a program: finding or fetching one that can do COLO, its command line, its process, and a
 * guest to try it with.
 *
 * @module
 */

export {
  type AcceleratorChoice,
  type AcceleratorFacts,
  chooseAccelerator,
  detectAccelerator,
} from "./accelerator.ts";
export { AdoptedQemu, identify, isAlive, killLeftover, type ProcessIdentity } from "./adopt.ts";
export { cacheDirectory, type Progress } from "./cache.ts";
export {
  type DiskDescription,
  escapeCommas,
  type MachineDescription,
  type NicDescription,
  qemuArgs,
} from "./command_line.ts";
export { type BootFacts, ConsoleVerifier, type Tick } from "./console_verifier.ts";
export { type CpioEntry, writeCpio } from "./cpio.ts";
export { type Death, DeathWatch } from "./death_watch.ts";
export { type DemoGuest, prepareDemoGuest } from "./demo_guest.ts";
export {
  diagnose,
  type DiagnoseOptions,
  type Diagnosis,
  formatDiagnosis,
  type QemuCandidate,
} from "./doctor.ts";
export {
  findQemu,
  type FindQemuOptions,
  type Qemu,
  type QemuSource,
  qemuTool,
  resolveMachine,
} from "./find.ts";
export { type QemuExit, type QemuProcess, startQemu, type StartQemuOptions } from "./process.ts";
export {
  type Accelerator,
  coloCapabilities,
  judgeQemu,
  type QemuFacts,
  type Role,
  type RoleVerdict,
  type Suitability,
} from "./suitability.ts";
