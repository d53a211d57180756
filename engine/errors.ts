/**
 * Every error the engine throws on purpose, in one tree.
 *
 * ```text
 * ColoError
 * ├── ConfigError            a config file or a command line is wrong
 * ├── StateError             a call that the current state does not allow (our bug or the caller's)
 * ├── LocalProtocolError     we were about to say something the protocol forbids (our bug)
 * ├── RemoteProtocolError    a peer's bytes are wrong; carries the offset
 * │   ├── StreamError        QEMU's migration stream or a COLO message
 * │   ├── WireError          a frame of the link between two engines
 * │   ├── NbdError           what an NBD client or server says
 * │   └── PacketError        a record of a packet chardev of QEMU's
 * ├── LinkError              the connection between two engines cannot be made or is gone
 * ├── DiskError              a disk cannot be replicated as things are
 * ├── StoreError             a stored checkpoint is missing or damaged, or cannot be written
 * ├── ArbiterError           the arbiter gives no answer, or refuses; carries what it says
 * │   └── NotOursError       another host runs the VM
 * ├── QemuError              QEMU is missing, unsuitable, or ended
 * └── QmpError
 *     ├── QmpCommandError    QEMU refused a command; carries the error class
 *     ├── QmpTimeoutError    QEMU did not answer in time
 *     ├── QmpProtocolError   what came was not QMP
 *     └── QmpClosedError     the monitor is closed
 * ```
 *
 * Messages read "Cannot <verb> <object>: <detail>" and say what to do where that is known.
 *
 * @module
 */

/** The base of every error thrown on purpose: one sentence that a user can act on. */
export class ColoError extends Error {
  override name = "ColoError";
}

/** A config file, an option or an environment variable is wrong. */
export class ConfigError extends ColoError {
  override name = "ConfigError";
}

/** A call that the current state does not allow; nothing was changed. */
export class StateError extends ColoError {
  override name = "StateError";
  constructor(message: string, readonly state: string, readonly required: string) {
    super(message);
  }
}

/** We were about to say something the protocol forbids: a bug on this side. */
export class LocalProtocolError extends ColoError {
  override name = "LocalProtocolError";
}

/** A peer's bytes are wrong. The connection they came over is of no further use. */
export class RemoteProtocolError extends ColoError {
  override name = "RemoteProtocolError";
  /** @param offset Position of the first wrong byte, in bytes from the start of the connection */
  constructor(message: string, readonly offset: number) {
    super(`${message} (at byte ${offset})`);
  }
}

/** QEMU's migration stream, or a COLO message in it, is wrong. */
export class StreamError extends RemoteProtocolError {
  override name = "StreamError";
}

/** A frame of the link between two engines is wrong. */
export class WireError extends RemoteProtocolError {
  override name = "WireError";
}

/** What an NBD client or server says is wrong. */
export class NbdError extends RemoteProtocolError {
  override name = "NbdError";
}

/** A record of a packet chardev of QEMU's is wrong. A new connection begins with a new record. */
export class PacketError extends RemoteProtocolError {
  override name = "PacketError";
}

/** The connection between two engines cannot be made, or is gone. */
export class LinkError extends ColoError {
  override name = "LinkError";
}

/** A disk cannot be replicated as things are; the guest has it as before. */
export class DiskError extends ColoError {
  override name = "DiskError";
}

/** A stored checkpoint is missing or damaged, or cannot be written; those that were there still are. */
export class StoreError extends ColoError {
  override name = "StoreError";
}

/** The arbiter gives no answer (what was asked may have been done all the same), or refuses. */
export class ArbiterError extends ColoError {
  override name = "ArbiterError";
  /** @param code What it refuses with, a status code of gRPC; undefined where it gave no answer */
  constructor(message: string, readonly code?: number) {
    super(message);
  }
}

/** The VM is another host's, so that it must not run here. */
export class NotOursError extends ArbiterError {
  override name = "NotOursError";
}

/** QEMU is missing, cannot do what is asked, or ended. */
export class QemuError extends ColoError {
  override name = "QemuError";
}

/** Anything that goes wrong on a QMP monitor. */
export class QmpError extends ColoError {
  override name = "QmpError";
}

/** QEMU refused a command. The monitor stays usable. */
export class QmpCommandError extends QmpError {
  override name = "QmpCommandError";
  /** @param errorClass QMP's error class, such as `GenericError` or `CommandNotFound` */
  constructor(readonly command: string, readonly errorClass: string, readonly description: string) {
    super(`Cannot execute ${command}: ${description}`);
  }
}

/** QEMU did not answer in time. The command may still take effect; the monitor stays open. */
export class QmpTimeoutError extends QmpError {
  override name = "QmpTimeoutError";
  constructor(
    readonly command: string,
    readonly timeoutMs: number,
    message = `Cannot execute ${command}: no answer within ${timeoutMs} ms`,
  ) {
    super(message);
  }
}

/** What came over the monitor was not QMP. The monitor is closed. */
export class QmpProtocolError extends QmpError {
  override name = "QmpProtocolError";
}

/** The monitor is closed: QEMU ended, or {@linkcode QmpError} came before. */
export class QmpClosedError extends QmpError {
  override name = "QmpClosedError";
}

/** What is said of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
