/**
 * The numbers of QEMU's RAM records (migration/ram.c, migration/xbzrle.c) and of page tables. The
 * host side has the same ones in wasm/format.ts and wasm/kernel_set.ts, with their reasons.
 */

// @ts-ignore: decorator
@inline
export const PAGE_BYTES: usize = 4096;
// @ts-ignore: decorator
@inline
export const PAGE_ENTRY_BYTES: usize = 8;

// @ts-ignore: decorator
@inline
export const FLAG_ZERO: u64 = 0x02;
// @ts-ignore: decorator
@inline
export const FLAG_PAGE: u64 = 0x08;
// @ts-ignore: decorator
@inline
export const FLAG_CONTINUE: u64 = 0x20;
// @ts-ignore: decorator
@inline
export const FLAG_XBZRLE: u64 = 0x40;
// @ts-ignore: decorator
@inline
export const FLAGS_MASK: u64 = 0xfff;

// @ts-ignore: decorator
@inline
export const XBZRLE_ENCODING: u8 = 0x01;
// @ts-ignore: decorator
@inline
export const XBZRLE_BODY_BYTES_MAX: usize = 3072;

// @ts-ignore: decorator
@inline
export const SCAN_MORE: i32 = 0;
// @ts-ignore: decorator
@inline
export const SCAN_OTHER: i32 = 1;
// @ts-ignore: decorator
@inline
export const SCAN_FULL: i32 = 2;
// @ts-ignore: decorator
@inline
export const SCAN_BAD_ADDRESS: i32 = -1;

// @ts-ignore: decorator
@inline
export const ENCODE_DELTA: i32 = 0;
// @ts-ignore: decorator
@inline
export const ENCODE_SEED: i32 = 2;

// @ts-ignore: decorator
@inline
export const COUNTER_UNCHANGED: usize = 0;
// @ts-ignore: decorator
@inline
export const COUNTER_ZERO: usize = 4;
// @ts-ignore: decorator
@inline
export const COUNTER_XBZRLE: usize = 8;
// @ts-ignore: decorator
@inline
export const COUNTER_WHOLE: usize = 12;
