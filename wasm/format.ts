/**
 * The numbers of QEMU's RAM records that both kernel sets share (`migration/ram.c`,
 * `migration/xbzrle.c`), and this project's own choice of when XBZRLE is worth it.
 *
 * @module
 */

/** Bytes of one guest page. */
export const PAGE_BYTES = 4096;

/** Flags in the low 12 bits of a RAM record's be64 header (`RAM_SAVE_FLAG_*`). */
export const RAM_FLAG = {
  ZERO: 0x02,
  PAGE: 0x08,
  CONTINUE: 0x20,
  XBZRLE: 0x40,
} as const;

/** First byte behind the header of an XBZRLE record (`ENCODING_FLAG_XBZRLE`). */
export const XBZRLE_ENCODING = 0x01;

/** QEMU's `uleb128_encode_small` takes 14 bits, so no run is longer. */
export const XBZRLE_LENGTH_MAX = 0x3fff;

/**
 * Longest XBZRLE body that is still preferred to the whole page.
 *
 * Three quarters of a page. Run headers break LZ4's matches: over code, text and records a body of
 * half a page leaves 0.5 to 0.7 of what the whole page does after compression, and near 0.8 of a page
 * nothing is saved. Giving up early also keeps a page that is new altogether close to a plain copy.
 */
export const XBZRLE_BODY_BYTES_MAX = 3072;

/** lz4Compress takes no longer source. */
export const LZ4_SOURCE_BYTES_MAX = 1024 * 1024;
