/**
 * A demo guest that was booted once and saved, so that one pair after another starts from the same
 * state without the boot.
 *
 * @module
 */

import { assertEquals } from "@std/assert/mod.js";
import { ConsoleTail } from "../../cli/demo/console_tail.ts";
import type { SessionOptions } from "../../cli/demo/session.ts";
import { parseVmConfig, type VmSection } from "../../engine/config/mod.ts";
import { startVm } from "../../engine/host/start_vm.ts";
import type { BootFacts, Qemu } from "../../engine/vm/mod.ts";
import { findQemu, prepareDemoGuest, qemuTool } from "../../engine/vm/mod.ts";
import { until } from "./_pair.ts";

const SNAPSHOT = "booted";
const BOOT_MS = 60_000;
const SAVE_MS = 60_000;

/** A saved guest. Only one primary may run it at a time. */
export class SavedGuest implements AsyncDisposable {
  private constructor(
    readonly directory: string,
    readonly vm: VmSection,
    readonly bootFacts: BootFacts,
  ) {}

  /**
   * Boot a guest, wait until it ticks and its load runs, and save it.
   *
   * @param parameters Of the demo guest, such as `colo.load=small-writes`
   */
  static async boot(memoryMiB: number, parameters: string): Promise<SavedGuest> {
    const qemu = await findQemu({ role: "primary" });
    const guest = await prepareDemoGuest();
    const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
    const image = `${directory}/saved.qcow2`;
    await createImage(qemu, image);
    const config = parseVmConfig(
      [
        "[vm]",
        'name = "saved"',
        `memory = ${memoryMiB}`,
        `kernel = ${JSON.stringify(guest.kernelPath)}`,
        `initrd = ${JSON.stringify(guest.initrdPath)}`,
        `append = ${JSON.stringify(`${guest.append} ${parameters}`)}`,
        'console = "console.log"',
        `extraArgs = ["-drive", "if=none,format=qcow2,file=${image}"]`,
        "[[vm.nics]]",
        'mac = "52:54:00:c0:10:01"',
        'netdev = "user,restrict=on"',
      ].join("\n"),
      `${directory}/vm.toml`,
    );
    const vm = await startVm({ config, qemu, directory, incoming: false, report: () => {} });
    const console = new ConsoleTail(`${directory}/console.log`);
    try {
      const loads = () => Deno.readTextFileSync(`${directory}/console.log`).includes("colo-load ");
      const booted = () => console.poll().length >= 0 && console.ticks.length >= 2 && loads();
      await until(booted, BOOT_MS, "the guest boots");
      await vm.qmp.execute("stop");
      const words = await vm.qmp.executeRaw(
        "human-monitor-command",
        { "command-line": `savevm ${SNAPSHOT}` },
        { timeoutMs: SAVE_MS },
      );
      assertEquals(words, "", "the guest was not saved");
    } finally {
      await vm.stop();
    }
    return new SavedGuest(directory, config.vm, console.boot!);
  }

  /** As {@linkcode SessionOptions}.configure: the primary goes on from where the guest was saved. */
  readonly configure: NonNullable<SessionOptions["configure"]> = (config, side) => {
    const { console } = config.vm;
    // A secondary is given everything over the wire.
    const extraArgs = side === "primary" ? [...this.vm.extraArgs, "-loadvm", SNAPSHOT] : [];
    return { ...config, vm: { ...this.vm, console, extraArgs } };
  };

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.directory, { recursive: true });
  }
}

async function createImage(qemu: Qemu, path: string): Promise<void> {
  const [program = "", ...leading] = qemuTool("qemu-img", qemu);
  const { code, stderr } = await new Deno.Command(program, {
    args: [...leading, "create", "-q", "-f", "qcow2", path, "1M"],
    env: { ...qemu.env },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
}
