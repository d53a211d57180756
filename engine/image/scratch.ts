/**
 * The kernels' work on a few bytes at a time: copied into their memory, and out of it.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { PAGE_BYTES } from "../limits.ts";

/** Bytes of a checksum. */
export const CHECKSUM_BYTES = 8;

const PIECE_BYTES = 1024 * 1024;

/** Room in one kernel memory, reserved once. */
export class Scratch {
  readonly #kernels: KernelSet;
  readonly #page: number;
  readonly #body: number;
  readonly #piece: number;
  readonly #out: number;

  /** @param kernels Of which some MiB are taken for good */
  constructor(kernels: KernelSet) {
    this.#kernels = kernels;
    this.#page = kernels.alloc(PAGE_BYTES);
    this.#body = kernels.alloc(PAGE_BYTES);
    this.#piece = kernels.alloc(CHECKSUM_BYTES + PIECE_BYTES);
    this.#out = kernels.alloc(CHECKSUM_BYTES);
  }

  /** Apply an XBZRLE body to a page. Returns false when it is malformed, whatever the page holds. */
  applyChange(body: Uint8Array, page: Uint8Array): boolean {
    const kernels = this.#kernels;
    kernels.bytes.set(page, this.#page);
    kernels.bytes.set(body, this.#body);
    if (kernels.xbzrleDecode(this.#body, body.length, this.#page, PAGE_BYTES) < 0) return false;
    page.set(kernels.bytes.subarray(this.#page, this.#page + PAGE_BYTES));
    return true;
  }

  isZero(page: Uint8Array): boolean {
    this.#kernels.bytes.set(page, this.#page);
    return this.#kernels.isZero(this.#page, PAGE_BYTES) === 1;
  }

  /** XXH64, of a MiB at a time together with the checksum of what came before it. */
  checksum(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
    const kernels = this.#kernels;
    let sum = new Uint8Array(CHECKSUM_BYTES);
    let at = 0;
    do {
      const piece = bytes.subarray(at, at + PIECE_BYTES);
      kernels.bytes.set(sum, this.#piece);
      kernels.bytes.set(piece, this.#piece + CHECKSUM_BYTES);
      kernels.xxh64(this.#piece, CHECKSUM_BYTES + piece.length, this.#out);
      sum = new Uint8Array(kernels.bytes.subarray(this.#out, this.#out + CHECKSUM_BYTES));
      at += PIECE_BYTES;
    } while (at < bytes.length);
    return sum;
  }

  /** Whether `sum` is the checksum of these bytes. */
  verify(bytes: Uint8Array, sum: Uint8Array): boolean {
    const computed = this.checksum(bytes);
    return sum.length === CHECKSUM_BYTES && computed.every((byte, index) => byte === sum[index]);
  }
}
