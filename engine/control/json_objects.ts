/**
 * Cuts a stream of bytes into JSON objects, wherever they begin and end: some QMP clients write one a
 * line, some write no line ends at all, some spread one over many lines. Pure.
 *
 * @module
 */

/** What a client has sent. */
export type ClientInput =
  | { readonly type: "object"; readonly value: Readonly<Record<string, unknown>> }
  /** Rubbish; it ends where a line ends. */
  | { readonly type: "malformed"; readonly reason: string };

const CODE = {
  LINE_FEED: 0x0a,
  QUOTE: 0x22,
  BACKSLASH: 0x5c,
  OPEN: [0x7b, 0x5b],
  CLOSE: [0x7d, 0x5d],
  BLANK: [0x20, 0x09, 0x0d, 0x0a],
} as const;

/** Nesting that no command needs; deeper would cost the JSON parser's stack. */
const DEPTH_MAX = 64;

/** Reads what one client sends. */
export class JsonObjects {
  readonly #bytesMax: number;
  #bytes: Uint8Array<ArrayBuffer>;
  #length = 0;
  #depth = 0;
  #inText = false;
  #escaped = false;
  /** Rubbish is being passed over, up to the end of the line. */
  #lost = false;

  /** @param bytesMax Length of the longest object */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
    this.#bytes = new Uint8Array(Math.min(bytesMax, 4096));
  }

  /**
   * Take the next bytes.
   *
   * @returns The objects that they complete, in their order
   */
  push(chunk: Uint8Array): ClientInput[] {
    const inputs: ClientInput[] = [];
    for (const byte of chunk) {
      const input = this.#take(byte);
      if (input !== undefined) inputs.push(input);
    }
    return inputs;
  }

  #take(byte: number): ClientInput | undefined {
    if (this.#lost) {
      if (byte === CODE.LINE_FEED) this.#lost = false;
      return undefined;
    }
    if (this.#length === 0 && isOneOf(CODE.BLANK, byte)) return undefined;
    if (this.#length === 0 && byte !== CODE.OPEN[0]) {
      return this.#lose(byte, "JSON parse error, expecting an object");
    }
    if (this.#length === this.#bytesMax) {
      return this.#lose(byte, `JSON parse error, more than ${this.#bytesMax} bytes`);
    }
    this.#keep(byte);
    this.#nest(byte);
    if (this.#depth > DEPTH_MAX) {
      return this.#lose(byte, `JSON parse error, nested deeper than ${DEPTH_MAX}`);
    }
    return this.#depth === 0 ? this.#parse() : undefined;
  }

  #nest(byte: number): void {
    if (this.#inText) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === CODE.BACKSLASH) this.#escaped = true;
      else if (byte === CODE.QUOTE) this.#inText = false;
    } else if (byte === CODE.QUOTE) this.#inText = true;
    else if (isOneOf(CODE.OPEN, byte)) this.#depth++;
    else if (isOneOf(CODE.CLOSE, byte)) this.#depth--;
  }

  #keep(byte: number): void {
    if (this.#length === this.#bytes.length) {
      const larger = new Uint8Array(Math.min(this.#bytesMax, 2 * this.#length));
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    this.#bytes[this.#length++] = byte;
  }

  #parse(): ClientInput {
    const bytes = this.#bytes.subarray(0, this.#length);
    this.#reset();
    try {
      const value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
      return { type: "object", value };
    } catch {
      return { type: "malformed", reason: "JSON parse error, this is no JSON" };
    }
  }

  #lose(byte: number, reason: string): ClientInput {
    this.#reset();
    this.#lost = byte !== CODE.LINE_FEED;
    return { type: "malformed", reason };
  }

  #reset(): void {
    this.#length = 0;
    this.#depth = 0;
    this.#inText = false;
    this.#escaped = false;
  }
}

function isOneOf(codes: readonly number[], byte: number): boolean {
  return codes.includes(byte);
}
