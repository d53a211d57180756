/**
 * Compiles `wasm/assembly` into `wasm/kernels.wasm`.
 *
 * `deno task build:wasm` writes the file; with `--check` it compiles in memory and exits with 1 when
 * the committed file is not what the sources make.
 *
 * @module
 */

import asc from "assemblyscript/asc";

const ASSEMBLY_URL = new URL("./assembly/", import.meta.url);
const OUTPUT_URL = new URL("./kernels.wasm", import.meta.url);
const OUTPUT_NAME = "kernels.wasm";

/**
 * The memory comes from the host, so that each instance can have its own size; what the module
 * declares is the widest range that such a memory may have.
 */
const OPTIONS = [
  "index.ts",
  ...["--outFile", OUTPUT_NAME],
  ...["--runtime", "stub"],
  ...["--enable", "simd,bulk-memory,threads"],
  ...["--use", "abort="],
  ...["--initialMemory", "1"],
  ...["--maximumMemory", "65536"],
  "--importMemory",
  "--sharedMemory",
  "--zeroFilledMemory",
  "--noAssert",
  "--converge",
  "-O3",
];

/** Compile the kernels. The same sources give the same bytes. */
export async function buildKernels(): Promise<Uint8Array<ArrayBuffer>> {
  const written = new Map<string, Uint8Array | string>();
  const { error, stderr } = await asc.main(OPTIONS, {
    readFile: readSource,
    writeFile: (name, contents) => void written.set(name, contents),
    listFiles: () => [],
  });
  const kernels = written.get(OUTPUT_NAME);
  if (error !== null || !(kernels instanceof Uint8Array)) {
    throw new Error(`Cannot compile the kernels: ${error?.message ?? "no output"}\n${stderr}`);
  }
  return new Uint8Array(kernels);
}

/** The compiler asks for files that need not exist. */
function readSource(name: string): string | null {
  try {
    return Deno.readTextFileSync(new URL(name, ASSEMBLY_URL));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

/** Are the committed kernels what the sources make? */
export async function isBuildCurrent(): Promise<boolean> {
  const [built, committed] = await Promise.all([buildKernels(), Deno.readFile(OUTPUT_URL)]);
  return built.length === committed.length && built.every((byte, i) => byte === committed[i]);
}

if (import.meta.main) {
  if (!Deno.args.includes("--check")) {
    const kernels = await buildKernels();
    await Deno.writeFile(OUTPUT_URL, kernels);
    console.log(`Wrote wasm/${OUTPUT_NAME}: ${kernels.length} bytes`);
  } else if (!await isBuildCurrent()) {
    console.error(
      `Cannot accept wasm/${OUTPUT_NAME}: it is not what wasm/assembly compiles to, ` +
        "run `deno task build:wasm` and commit the result",
    );
    Deno.exit(1);
  }
}
