/**
 * Follows the file that a guest's console is written to.
 *
 * @module
 */

import type { BootFacts, Tick } from "../../engine/vm/mod.ts";
import { ConsoleVerifier } from "../../engine/vm/mod.ts";

/** A console, read when asked. */
export class ConsoleTail {
  readonly ticks: Tick[] = [];
  readonly #path: string;
  readonly #decoder = new TextDecoder();
  #verifier = new ConsoleVerifier();
  #offset = 0;

  constructor(path: string) {
    this.#path = path;
  }

  get boot(): BootFacts | undefined {
    return this.#verifier.boot;
  }

  /** The guest was booted on another console; call it before the first {@linkcode poll}. */
  bootedAs(boot: BootFacts): void {
    this.#verifier = new ConsoleVerifier(boot);
  }

  /** Ticks that were printed since the last call. */
  poll(): Tick[] {
    let bytes: Uint8Array;
    try {
      using file = Deno.openSync(this.#path);
      file.seekSync(this.#offset, Deno.SeekMode.Start);
      bytes = new Uint8Array(64 * 1024);
      bytes = bytes.subarray(0, file.readSync(bytes) ?? 0);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
    this.#offset += bytes.length;
    const ticks = this.#verifier.push(this.#decoder.decode(bytes, { stream: true }));
    this.ticks.push(...ticks);
    return ticks;
  }
}
