/**
 * Kernels on plain byte ranges: zero, equal, copy.
 */

/**
 * Whether every byte is zero. 128 bytes a round, or-ed down to one lane set:
 *
 *   at  +0   +16  +32  +48  +64  +80  +96  +112
 *       |    |    |    |    |    |    |    |
 *       \-or-/    \-or-/    \-or-/    \-or-/
 *          \---or---/          \---or---/
 *               \--------or--------/  any bit set: not zero
 */
export function isZero(address: usize, length: usize): i32 {
  let at = address;
  let left = length;
  for (; left >= 128; left -= 128, at += 128) {
    const a = v128.or(
      v128.or(v128.load(at), v128.load(at, 16)),
      v128.or(v128.load(at, 32), v128.load(at, 48)),
    );
    const b = v128.or(
      v128.or(v128.load(at, 64), v128.load(at, 80)),
      v128.or(v128.load(at, 96), v128.load(at, 112)),
    );
    if (v128.any_true(v128.or(a, b))) return 0;
  }
  for (; left >= 16; left -= 16, at += 16) {
    if (v128.any_true(v128.load(at))) return 0;
  }
  for (; left > 0; left--, at++) {
    if (load<u8>(at) != 0) return 0;
  }
  return 1;
}

/** Whether 64 bytes differ: four lanes xor-ed and or-ed down to one. */
// @ts-ignore: decorator
@inline
export function differs64(a: usize, b: usize): bool {
  return v128.any_true(
    v128.or(
      v128.or(
        v128.xor(v128.load(a), v128.load(b)),
        v128.xor(v128.load(a, 16), v128.load(b, 16)),
      ),
      v128.or(
        v128.xor(v128.load(a, 32), v128.load(b, 32)),
        v128.xor(v128.load(a, 48), v128.load(b, 48)),
      ),
    ),
  );
}

export function isEqual(a: usize, b: usize, length: usize): i32 {
  let at: usize = 0;
  let left = length;
  for (; left >= 64; left -= 64, at += 64) {
    if (differs64(a + at, b + at)) return 0;
  }
  for (; left >= 16; left -= 16, at += 16) {
    if (v128.any_true(v128.xor(v128.load(a + at), v128.load(b + at)))) return 0;
  }
  for (; left > 0; left--, at++) {
    if (load<u8>(a + at) != load<u8>(b + at)) return 0;
  }
  return 1;
}

export function copy(target: usize, source: usize, length: usize): void {
  memory.copy(target, source, length);
}

/**
 * Copy a run that is mostly short: memory.copy is a call into the runtime. Everything is loaded before
 * anything is stored, so the ranges may overlap.
 *
 *   8..15 bytes    | first 8        |
 *                       | last 8         |      the moves overlap in the middle
 */
// @ts-ignore: decorator
@inline
export function copyRun(to: usize, from: usize, length: usize): void {
  if (length < 4) {
    if (length == 0) return;
    const first = load<u8>(from);
    const middle = load<u8>(from + (length >>> 1));
    const last = load<u8>(from + length - 1);
    store<u8>(to, first);
    store<u8>(to + (length >>> 1), middle);
    store<u8>(to + length - 1, last);
  } else if (length < 8) {
    const first = load<u32>(from);
    const last = load<u32>(from + length - 4);
    store<u32>(to, first);
    store<u32>(to + length - 4, last);
  } else if (length < 16) {
    const first = load<u64>(from);
    const last = load<u64>(from + length - 8);
    store<u64>(to, first);
    store<u64>(to + length - 8, last);
  } else if (length < 32) {
    const first = v128.load(from);
    const last = v128.load(from + length - 16);
    v128.store(to, first);
    v128.store(to + length - 16, last);
  } else {
    memory.copy(to, from, length);
  }
}
