import { assert, assertEquals } from "@std/assert/mod.js";
import { buildKernels, isBuildCurrent } from "../../wasm/build.ts";

Deno.test("kernels.wasm is what wasm/assembly compiles to", async () => {
  assert(await isBuildCurrent(), "run `deno task build:wasm`");
});

Deno.test("kernels.wasm imports a memory and nothing else", async () => {
  const module = new WebAssembly.Module(await buildKernels());
  const imports = WebAssembly.Module.imports(module);
  assertEquals(imports.map(({ module, name, kind }) => ({ module, name, kind })), [
    { module: "env", name: "memory", kind: "memory" },
  ]);
});
