/**
 * Where an engine has its sockets, and what is known of its QEMU: it outlives the engine, so that the
 * next one for the same config finds the VM that runs.
 *
 * @module
 */

import { createHash } from "node:crypto";
import type { VmConfig } from "../config/mod.ts";
import { runtimeDirectory } from "../control/mod.ts";
import { ColoError, ConfigError, messageOf } from "../errors.ts";
import { coloCapabilities, isAlive, type ProcessIdentity, type Qemu } from "../vm/mod.ts";

/** A QEMU that an engine has started. */
export interface RunRecord extends ProcessIdentity {
  /** Whether it is the VM that the world sees; if not it stands by. */
  readonly runsVm: boolean;
  /** Its monitor, for one client at a time. */
  readonly qmpPath: string;
  /** What it is, so that nobody has to find that out again while its guest stands still. */
  readonly qemu?: Qemu | undefined;
}

const LOCK_NAME = "lock";
const RECORD_NAME = "qemu.json";

/** Where the engine of a config has its directory, the same at every start. */
export function runDirectoryOf({ path }: Pick<VmConfig, "path">): string {
  // A socket's path has some hundred characters and no more, so neither name nor path of a VM fits.
  const hash = createHash("sha256").update(path).digest("hex").slice(0, 12);
  return `${runtimeDirectory()}/run-${hash}`;
}

/** The QEMU that an engine has started, if it still runs. */
export function readRunRecord(directory: string): RunRecord | undefined {
  try {
    const text = Deno.readTextFileSync(`${directory}/${RECORD_NAME}`);
    const { pid, startTicks, qmpPath, runsVm, qemu } = JSON.parse(text) as Partial<RunRecord>;
    if (typeof pid !== "number" || typeof startTicks !== "number") return undefined;
    if (typeof qmpPath !== "string" || typeof runsVm !== "boolean") return undefined;
    const record = { pid, startTicks, qmpPath, runsVm, qemu: knownQemu(qemu) };
    return isAlive(record) ? record : undefined;
  } catch {
    // There is none, or half of one, whose QEMU did not come up.
    return undefined;
  }
}

function knownQemu(qemu: Partial<Qemu> | undefined): Qemu | undefined {
  const { command, env, version, accel, source } = qemu ?? {};
  if (!Array.isArray(command) || typeof env !== "object" || typeof version !== "string") {
    return undefined;
  }
  if (accel === undefined || source === undefined) return undefined;
  // Which capabilities are set is up to the engine, and this may be a newer one.
  return { command, env, version, accel, source, capabilities: coloCapabilities(version) };
}

/** The directory of one engine, taken by this process until it is given up. */
export class RunDirectory implements Disposable {
  readonly #lock: Deno.FsFile;

  private constructor(readonly path: string, lock: Deno.FsFile) {
    this.#lock = lock;
  }

  /**
   * Take it, or make it.
   *
   * @throws {ConfigError} when another process has it
   * @throws {ColoError} when there is no place for it
   */
  static take(config: Pick<VmConfig, "path">): RunDirectory {
    const path = runDirectoryOf(config);
    let lock: Deno.FsFile;
    try {
      Deno.mkdirSync(path, { recursive: true, mode: 0o700 });
      lock = Deno.openSync(`${path}/${LOCK_NAME}`, { write: true, create: true });
    } catch (error) {
      throw new ColoError(`Cannot keep sockets in ${path}: ${messageOf(error)}`);
    }
    if (lock.tryLockSync(true)) return new RunDirectory(path, lock);
    lock.close();
    throw new ConfigError(
      `Cannot use ${config.path}: another engine has it already; end that one first`,
    );
  }

  /** The QEMU that an earlier process has left running. */
  get record(): RunRecord | undefined {
    return readRunRecord(this.path);
  }

  /** Say which QEMU runs, or that none does. */
  set record(record: RunRecord | undefined) {
    const path = `${this.path}/${RECORD_NAME}`;
    if (record === undefined) {
      try {
        Deno.removeSync(path);
      } catch {
        // There was none.
      }
      return;
    }
    Deno.writeTextFileSync(`${path}.new`, JSON.stringify(record));
    Deno.renameSync(`${path}.new`, path);
  }

  /** Give it up. It is removed unless a QEMU still runs. */
  [Symbol.dispose](): void {
    if (this.record === undefined) Deno.removeSync(this.path, { recursive: true });
    this.#lock.close();
  }
}
