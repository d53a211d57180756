/**
 * TCP's sequence numbers (RFC 9293, section 3.4): 32 bits that wrap, kept as signed numbers so that
 * they stay small integers to the runtime. They are compared by these functions alone.
 *
 * @module
 */

/** Does `a` come after `b`, at a distance of less than 2 GiB? */
export function seqAfter(a: number, b: number): boolean {
  return (a - b | 0) > 0;
}

/** Does `a` come before `b`? */
export function seqBefore(a: number, b: number): boolean {
  return (a - b | 0) < 0;
}

/** Bytes from `a` to `b`; negative when `b` comes before. */
export function seqDistance(a: number, b: number): number {
  return b - a | 0;
}

/** The sequence number `count` bytes behind `a`. */
export function seqAdd(a: number, count: number): number {
  return a + count | 0;
}
