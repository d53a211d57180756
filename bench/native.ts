/**
 * Native code to compare the kernels with: libc, and liblz4 and libxxhash where they are installed.
 * Addresses are plain numbers, which keeps a call through FFI at a few nanoseconds.
 *
 * @module
 */

const LIBC = {
  memcmp: { parameters: ["usize", "usize", "usize"], result: "i32" },
  memcpy: { parameters: ["usize", "usize", "usize"], result: "usize" },
} as const;

const LZ4 = {
  LZ4_compress_default: { parameters: ["usize", "usize", "i32", "i32"], result: "i32" },
  LZ4_decompress_safe: { parameters: ["usize", "usize", "i32", "i32"], result: "i32" },
} as const;

const XXHASH = {
  XXH64: { parameters: ["usize", "usize", "u64"], result: "u64" },
} as const;

type Symbols<T extends Deno.ForeignLibraryInterface> = Deno.DynamicLibrary<T>["symbols"];

/** What of it this machine has. */
export interface Native {
  readonly libc: Symbols<typeof LIBC>;
  readonly lz4: Symbols<typeof LZ4> | undefined;
  readonly xxhash: Symbols<typeof XXHASH> | undefined;
  /** Where a buffer lies in this process; it stays there only while the buffer does. */
  addressOf(bytes: Uint8Array<ArrayBuffer>): number;
  close(): void;
}

/** Open the libraries. */
export function openNative(): Native {
  const libc = Deno.dlopen("libc.so.6", LIBC);
  const lz4 = openIfInstalled("liblz4.so.1", LZ4);
  const xxhash = openIfInstalled("libxxhash.so.0", XXHASH);
  return {
    libc: libc.symbols,
    lz4: lz4?.symbols,
    xxhash: xxhash?.symbols,
    addressOf: (bytes) => Number(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes))),
    close: () => {
      libc.close();
      lz4?.close();
      xxhash?.close();
    },
  };
}

function openIfInstalled<T extends Deno.ForeignLibraryInterface>(
  name: string,
  symbols: T,
): Deno.DynamicLibrary<T> | undefined {
  try {
    return Deno.dlopen(name, symbols);
  } catch {
    return undefined;
  }
}
