import { assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { Tool } from "../_tool.ts";
import { contents, noise, unaligned } from "./contents.ts";
import { Twin } from "./twin.ts";

const LENGTH_MAX = 5000;
const twin = new Twin();
const source = twin.alloc(LENGTH_MAX + 64);
const out = twin.alloc(8);

function xxh64(address: number, length: number): string {
  twin.run((kernels) => kernels.xxh64(address, length, out));
  return twin.get({ address: out, length: 8 }).toReversed().toHex();
}

Deno.test("xxh64 gives the known hashes", () => {
  const known = {
    "": "ef46db3751d8e999",
    "a": "d24ec4f1a98c6e5b",
    "abc": "44bc2cf5ad770999",
    "Nobody inspects the spammish repetition": "fbcea83c8a378bf1",
  };
  for (const [text, hash] of Object.entries(known)) {
    twin.reset();
    twin.set(source, new TextEncoder().encode(text));
    assertEquals(xxh64(source, text.length), hash);
  }
});

Deno.test("xxh64 gives libxxhash's hash of a longer range", () => {
  twin.reset();
  twin.set(source, noise(1, 1000));
  assertEquals(xxh64(source, 1000), "d6b7164b25227098");
});

Deno.test("xxh64 agrees with the reference at every length and alignment", () => {
  twin.reset();
  twin.set(source, noise(1, 200));
  for (let length = 0; length <= 130; length++) xxh64(source + length % 17, length);
  fc.assert(fc.property(contents(LENGTH_MAX), unaligned, (bytes, shift) => {
    twin.reset();
    twin.set(source + shift, bytes);
    xxh64(source + shift, bytes.length);
  }));
});

const xxhsum = await Tool.find("xxhsum");

Deno.test({
  name: "xxh64 agrees with the xxhsum tool",
  ignore: xxhsum === undefined,
  fn: async () => {
    const bytes = noise(77, LENGTH_MAX);
    twin.reset();
    twin.set(source, bytes);
    const path = await Deno.makeTempFile();
    try {
      await Deno.writeFile(path, bytes);
      const stdout = await xxhsum!.run(["-H64", path]);
      assertEquals(new TextDecoder().decode(stdout).split(" ")[0], xxh64(source, LENGTH_MAX));
    } finally {
      await Deno.remove(path);
    }
  },
});
