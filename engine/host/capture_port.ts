/**
 * The unix socket that a primary QEMU migrates to: its bytes go into a capture, our answers go back.
 *
 * @module
 */

import type { Capture, CaptureEvent } from "../checkpoint/capture.ts";
import { ConfigError, messageOf } from "../errors.ts";

/** When nothing more has come for so long of a stream that is out, all of it has been read. */
const INITIAL_QUIET_MS = 5;

/** A file that a stream is copied to. */
interface Recording {
  readonly path: string;
  readonly file: Deno.FsFile;
  readonly onFailed: (reason: string) => void;
}

/** Listens for one primary QEMU at a time. */
export class CapturePort {
  readonly #listener: Deno.UnixListener;
  #connection: Deno.UnixConn | undefined;
  #recording: Recording | undefined;

  /** @param path Where to listen; a socket that an engine has left there is replaced */
  constructor(readonly path: string) {
    removeIfThere(path);
    this.#listener = Deno.listen({ transport: "unix", path });
  }

  /**
   * Write all that the next QEMU says to a file, as `colo inspect` reads it, until its stream ends.
   *
   * @param onFailed Told when the file takes no more; the capture goes on
   * @throws {ConfigError} when it cannot be written
   */
  async record(path: string, onFailed: (reason: string) => void): Promise<void> {
    try {
      this.#recording = { path, file: await Deno.create(path), onFailed };
    } catch (error) {
      throw new ConfigError(`Cannot record to ${path}: ${messageOf(error)}`);
    }
  }

  /**
   * Serve the next QEMU that connects, until its stream ends.
   *
   * @param handle Called for every event in its order, before the next bytes are read
   * @throws {StreamError} when the bytes are no COLO stream; the connection is closed
   */
  async serve(capture: Capture, handle: (event: CaptureEvent) => void): Promise<void> {
    const connection = await this.#listener.accept();
    this.#connection = connection;
    this.write([capture.accept()]);
    try {
      while (true) {
        const space = capture.space();
        const count = await connection.read(space);
        if (count === null) return;
        if (this.#recording !== undefined) {
          await this.#write(this.#recording, space.slice(0, count));
        }
        for (const event of capture.received(count)) handle(event);
      }
    } finally {
      this.#connection = undefined;
      this.#stopRecording();
      connection.close();
    }
  }

  async #write({ path, file, onFailed }: Recording, bytes: Uint8Array): Promise<void> {
    try {
      await writeAll(file, bytes);
    } catch (error) {
      this.#stopRecording();
      onFailed(`Cannot record on to ${path}: ${messageOf(error)}`);
    }
  }

  #stopRecording(): void {
    this.#recording?.file.close();
    this.#recording = undefined;
  }

  /** Answer QEMU. Answers are a few bytes and never wait; one that fails ends {@linkcode serve}. */
  write(messages: readonly Uint8Array[]): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    const bytes = new Uint8Array(messages.reduce((sum, message) => sum + message.length, 0));
    let at = 0;
    for (const message of messages) {
      bytes.set(message, at);
      at += message.length;
    }
    // The read side sees the same break and reports it.
    writeAll(connection, bytes).catch(() => {});
  }

  /** Drop the QEMU that is being served. */
  disconnect(): void {
    try {
      this.#connection?.close();
    } catch {
      // Closed already.
    }
  }

  close(): void {
    this.disconnect();
    this.#stopRecording();
    this.#listener.close();
  }
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/**
 * QEMU has entered COLO, so that its initial stream is out: take what has not been read of it yet.
 *
 * @param isServing Whether the capture is still being fed
 */
export async function initialTaken(capture: Capture, isServing: () => boolean): Promise<void> {
  let offset = -1;
  while (isServing() && capture.state === "initial") {
    if (offset === capture.reader.offset) capture.entered();
    offset = capture.reader.offset;
    await new Promise((resolve) => setTimeout(resolve, INITIAL_QUIET_MS));
  }
}

/** Write every byte. */
export async function writeAll(
  target: { write(bytes: Uint8Array): Promise<number> },
  bytes: Uint8Array,
): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await target.write(bytes.subarray(at));
}
