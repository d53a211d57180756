/**
 * Proof from the demo guest's console that nothing of its memory was lost.
 *
 * ```text
 *   colo-boot nonce=<hex> chain=<64 hex> file=<64 hex>
 *   colo-tick <n> up=<seconds> chain=<64 hex> file=ok|BAD
 *
 *   chain 0 = sha256("colo" + nonce)           chain n = sha256("<chain n-1> <n>")
 * ```
 *
 * Everything follows from the nonce, so the chain of tick n on any console, the primary's or that of
 * a secondary which took over, shows whether that machine is the one that booted. A machine whose
 * memory fell back in time repeats numbers; one that lost or mixed memory breaks the chain.
 *
 * Pure: text in, ticks out. Any chunking gives the same ticks; lines of others, and lines into which
 * others wrote, are passed over.
 *
 * @module
 */

import { createHash } from "node:crypto";

/** What the guest said when it booted. */
export interface BootFacts {
  readonly nonce: string;
  /** Chain 0 */
  readonly chain: string;
  /** SHA-256 of the random file */
  readonly fileSha256: string;
}

/** One line of the guest's heartbeat. */
export interface Tick {
  /** 1, 2, 3... */
  readonly n: number;
  /** Of the guest */
  readonly uptimeSeconds: number;
  readonly chain: string;
  /** The guest found its random file unchanged */
  readonly fileOk: boolean;
  /** The chain is what follows from the boot line; false while no boot line is known */
  readonly chainOk: boolean;
}

const BOOT = /colo-boot nonce=([0-9a-f]{32}) chain=([0-9a-f]{64}) file=([0-9a-f]{64})$/;
const TICK = /colo-tick (\d{1,12}) up=(\d+\.\d+) chain=([0-9a-f]{64}) file=(ok|BAD)$/;

/** Of the chain, one value in so many is kept: what is between is computed again. */
const MARK_INTERVAL = 64;

/** A tick further ahead than this (six days) is taken for a wrong number, and not computed. */
const STEPS_MAX = 1_000_000;

/** A line without an end is thrown away from here on. */
const LINE_CHARS_MAX = 65_536;

/**
 * Reads one console.
 *
 * For a secondary that takes over, make a second one with the first one's {@linkcode boot}.
 *
 * @example
 * ```ts
 * import { ConsoleVerifier } from "./console_verifier.ts";
 *
 * const primary = new ConsoleVerifier();
 * primary.push("[    0.1] some kernel message\r\n");
 * const secondary = new ConsoleVerifier(primary.boot);
 * if (secondary.push("colo-tick 1 up=3.00 ").length !== 0) throw new Error("not a whole line");
 * ```
 */
export class ConsoleVerifier {
  #boot: BootFacts | undefined;
  #line = "";
  /** Chain values of the ticks 0, {@linkcode MARK_INTERVAL}, ... */
  #marks: string[] = [];

  /** @param boot The boot line, where another console has shown it */
  constructor(boot?: BootFacts) {
    if (boot !== undefined) this.#start(boot);
  }

  /** The boot line, once seen. A later one is another machine's and does not replace it. */
  get boot(): BootFacts | undefined {
    return this.#boot;
  }

  /**
   * Take what the console has shown since the last call.
   *
   * @returns The ticks whose lines ended in it
   */
  push(text: string): Tick[] {
    const lines = (this.#line + text).split("\n");
    const rest = lines.pop() ?? "";
    this.#line = rest.length > LINE_CHARS_MAX ? "" : rest;
    return lines.flatMap((line) => this.#take(line.trimEnd()));
  }

  #take(line: string): Tick[] {
    const boot = BOOT.exec(line);
    if (boot !== null) {
      const [, nonce = "", chain = "", fileSha256 = ""] = boot;
      if (this.#boot === undefined) this.#start({ nonce, chain, fileSha256 });
    }
    const tick = TICK.exec(line);
    if (tick === null) return [];
    const [, digits, seconds, chain = "", file] = tick;
    const n = Number(digits);
    return [{
      n,
      uptimeSeconds: Number(seconds),
      chain,
      fileOk: file === "ok",
      chainOk: this.#expected(n) === chain,
    }];
  }

  /** A boot line that contradicts itself was garbled, and is none. */
  #start(boot: BootFacts): void {
    if (sha256(`colo${boot.nonce}`) !== boot.chain) return;
    this.#boot = boot;
    this.#marks = [boot.chain];
  }

  #expected(n: number): string | undefined {
    const known = (this.#marks.length - 1) * MARK_INTERVAL;
    if (this.#marks.length === 0 || n > known + STEPS_MAX) return undefined;
    const markIndex = Math.min(Math.floor(n / MARK_INTERVAL), this.#marks.length - 1);
    let chain = this.#marks[markIndex] ?? "";
    for (let step = markIndex * MARK_INTERVAL + 1; step <= n; step++) {
      chain = sha256(`${chain} ${step}`);
      if (step === this.#marks.length * MARK_INTERVAL) this.#marks.push(chain);
    }
    return chain;
  }
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
