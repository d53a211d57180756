/**
 * Whether somebody else uses the image of a disk, as QEMU's own locks say. A standby's QEMU takes its
 * locks when its VM runs, and an engine that writes the image itself takes none: without a look before,
 * both would write to what is another's.
 *
 * QEMU locks single bytes of a file: number 100 + N for each permission N that it has, number 200 + N for each
 * that it leaves to nobody else. Source: QEMU's `block/file-posix.c` and `docs/system/qemu-block-drivers`.
 *
 * @module
 */

import { DiskError } from "../errors.ts";

const LIBC = Deno.dlopen("libc.so.6", {
  open: { parameters: ["buffer", "i32"], result: "i32" },
  fcntl: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
}).symbols;

const [O_RDONLY, O_CLOEXEC] = [0, 0o2000000];

/** Of a lock of an open file, which is not its process's, as fcntl(2) says. */
const F_OFD_GETLK = 36;
const [F_WRLCK, F_UNLCK] = [1, 2];

/** A `struct flock`: the kind of lock, its first byte and how many they are. */
const FLOCK = { BYTES: 32, TYPE_AT: 0, START_AT: 8, LENGTH_AT: 16 } as const;

/** To write, for somebody who does; and for somebody who wants nobody else to. */
const LOCKED_BYTES = [101n, 201n];

/**
 * Refuse images that somebody else uses. One that cannot be opened is left to those who will have to.
 *
 * @throws {DiskError} naming the first of them
 */
export function requireFree(paths: readonly string[]): void {
  const path = paths.find(isUsed);
  if (path === undefined) return;
  throw new DiskError(
    `Cannot use the disk ${path}: another process uses it; end that one first, or name another image`,
  );
}

function isUsed(path: string): boolean {
  const fd = LIBC.open(new TextEncoder().encode(`${path}\0`), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  try {
    return LOCKED_BYTES.some((byte) => {
      const lock = new DataView(new ArrayBuffer(FLOCK.BYTES));
      lock.setInt16(FLOCK.TYPE_AT, F_WRLCK, true);
      lock.setBigInt64(FLOCK.START_AT, byte, true);
      lock.setBigInt64(FLOCK.LENGTH_AT, 1n, true);
      return LIBC.fcntl(fd, F_OFD_GETLK, lock) === 0 &&
        lock.getInt16(FLOCK.TYPE_AT, true) !== F_UNLCK;
    });
  } finally {
    LIBC.close(fd);
  }
}
