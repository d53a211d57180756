/**
 * A guest that was booted once and saved with its load running, so that every contender starts from
 * the same state, and without the boot.
 *
 * @module
 */

import { parseVmConfig, type VmConfig } from "../../engine/config/mod.ts";
import { ColoError } from "../../engine/errors.ts";
import { startVm } from "../../engine/host/start_vm.ts";
import { qemuTool } from "../../engine/vm/mod.ts";
import { GUEST } from "./hosts.ts";
import { freshDirectory, pause, type Rig, until } from "./rig.ts";

/** A guest to be benchmarked. */
export interface GuestOptions {
  readonly memoryMiB: number;
  /** Parameters of the demo guest, such as `colo.load=idle`. */
  readonly parameters: string;
  /** What is behind its network card while it boots: QEMU saves the state of a user netdev as well. */
  readonly bootNetdev?: string | undefined;
}

/** How one side runs the guest. */
export interface SideOptions {
  /** The primary goes on from the saved state; the secondary is given it over the wire. */
  readonly side: "primary" | "secondary";
  /** Port of this host's loopback that reaches the guest's web server. */
  readonly httpPort?: number | undefined;
  /** Lines of its network card but the MAC, in place of one that only this host reaches. */
  readonly nic?: readonly string[] | undefined;
  /** Further arguments for QEMU. */
  readonly qemuArgs?: readonly string[] | undefined;
  /** More lines of TOML, such as the section `[replication]`. */
  readonly rest?: string | undefined;
}

const SNAPSHOT = "ready";
const BOOT_TIMEOUT_MS = 120_000;

/** For the load to get into its stride before the guest is saved. */
const SETTLE_MS = 1500;

/** A saved guest. Only one QEMU may run it at a time. */
export class BenchGuest {
  private constructor(
    readonly rig: Rig,
    readonly options: GuestOptions,
    readonly imagePath: string,
  ) {}

  /** Boot a guest and save it. */
  static async boot(rig: Rig, options: GuestOptions): Promise<BenchGuest> {
    rig.progress(`booting a guest of ${options.memoryMiB} MiB: ${options.parameters}`);
    const directory = await freshDirectory(rig);
    const guest = new BenchGuest(rig, options, `${directory}/saved.qcow2`);
    await createImage(rig, guest.imagePath);
    const console = `${directory}/console.log`;
    const { bootNetdev } = options;
    const nic = bootNetdev === undefined ? undefined : [`netdev = "${bootNetdev}"`];
    const config = guest.config({ side: "primary", nic }, directory);
    const fresh = {
      ...config,
      vm: { ...config.vm, console, extraArgs: config.vm.extraArgs.slice(0, 2) },
    };
    const vm = await startVm({
      config: fresh,
      qemu: rig.qemu,
      directory,
      incoming: false,
      report: () => {},
    });
    try {
      const load = /colo\.load=(\S+)/.exec(options.parameters)?.[1] ?? "tick";
      const sign = load === "idle" || load === "tick" ? "colo-boot " : `colo-load ${load}`;
      const shown = async () => (await Deno.readTextFile(console).catch(() => "")).includes(sign);
      await until(shown, "the guest boots", BOOT_TIMEOUT_MS, rig.signal);
      await pause(SETTLE_MS, rig.signal);
      await vm.qmp.execute("stop");
      const complaint = await vm.qmp.executeRaw(
        "human-monitor-command",
        { "command-line": `savevm ${SNAPSHOT}` },
        { timeoutMs: 60_000 },
      );
      if (complaint !== "") throw new ColoError(`Cannot save the guest: ${complaint}`);
    } finally {
      await vm.stop();
    }
    return guest;
  }

  /** The config of one side, as TOML: both sides have the same devices. */
  toml({ side, httpPort, nic, qemuArgs = [], rest = "" }: SideOptions): string {
    const { demoGuest } = this.rig;
    const { memoryMiB, parameters } = this.options;
    const drive = ["-drive", `if=none,format=qcow2,file=${this.imagePath}`];
    const snapshot = side === "primary" ? [...drive, "-loadvm", SNAPSHOT] : [];
    const forward = httpPort === undefined ? "" : `,hostfwd=tcp:127.0.0.1:${httpPort}-:80`;
    return [
      "[vm]",
      'name = "bench"',
      `memory = ${memoryMiB}`,
      `kernel = ${JSON.stringify(demoGuest.kernelPath)}`,
      `initrd = ${JSON.stringify(demoGuest.initrdPath)}`,
      `append = ${JSON.stringify(`${demoGuest.append} ${parameters}`)}`,
      `extraArgs = ${JSON.stringify([...snapshot, ...qemuArgs])}`,
      "[[vm.nics]]",
      `mac = "${GUEST.mac}"`,
      ...(nic ?? [`netdev = "user,restrict=on${forward}"`]),
      rest,
    ].join("\n");
  }

  /** The config of one side, as {@linkcode startVm} takes it. */
  config(options: SideOptions, directory: string): VmConfig {
    return parseVmConfig(this.toml(options), `${directory}/${options.side}.toml`);
  }
}

async function createImage(rig: Rig, path: string): Promise<void> {
  const [program = "", ...leading] = qemuTool("qemu-img", rig.qemu);
  const { success, stderr } = await new Deno.Command(program, {
    args: [...leading, "create", "-q", "-f", "qcow2", path, "1M"],
    env: { ...rig.qemu.env },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output();
  if (success) return;
  const words = new TextDecoder().decode(stderr).trim();
  throw new ColoError(`Cannot create an image to save the guest in: ${words}`);
}
