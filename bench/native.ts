/**
 * Native code to compare the kernels with: libc, and liblz4 and libxxhash where they are installed.
 * A call through FFI costs about 0.3 us: compare on ranges where that is little.
 *
 * @module
 */

const LIBC = {
  memcmp: { parameters: ["pointer", "pointer", "u32"], result: "i32" },
  memcpy: { parameters: ["pointer", "pointer", "u32"], result: "pointer" },
} as const;

const LZ4 = {
  LZ4_compress_default: { parameters: ["pointer", "pointer", "i32", "i32"], result: "i32" },
  LZ4_decompress_safe: { parameters: ["pointer", "pointer", "i32", "i32"], result: "i32" },
} as const;

const XXHASH = {
  XXH64: { parameters: ["pointer", "u32", "u64"], result: "u64" },
} as const;

type Symbols<T extends Deno.ForeignLibraryInterface> = Deno.DynamicLibrary<T>["symbols"];

/** What of it this machine has. */
export interface Native {
  readonly libc: Symbols<typeof LIBC>;
  readonly lz4: Symbols<typeof LZ4> | undefined;
  readonly xxhash: Symbols<typeof XXHASH> | undefined;
  /** Where the bytes of a buffer lie in this process; they stay there only while the buffer does. */
  locate(bytes: Uint8Array): (offset: number) => Deno.PointerValue;
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
    locate: (bytes) => {
      // Shared memory has a place as well, which the type does not know.
      const base = Deno.UnsafePointer.of(bytes as Uint8Array<ArrayBuffer>);
      if (base === null) throw new RangeError("Cannot locate a buffer: it is empty");
      return (offset) => Deno.UnsafePointer.offset(base, offset);
    },
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
