/**
 * What the kernels are measured on: contents like those of a guest's memory, the same in every run.
 *
 * @module
 */

/** Bytes to compress, and what they are. */
export interface Content {
  readonly name: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

const CONTENT_BYTES = 2 * 1024 * 1024;

/** Contents that compress well, badly and hardly. */
export async function corpus(): Promise<Content[]> {
  return [
    { name: "machine code", bytes: await machineCode() },
    { name: "text", bytes: text() },
    { name: "records", bytes: records() },
    { name: "random", bytes: random() },
  ];
}

/** A small generator (xorshift32) with a fixed seed. */
export function* randomNumbers(seed = 0x9e3779b9): Generator<number, never> {
  let state = seed;
  while (true) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    yield state >>> 0;
  }
}

/** A large program that is there on every machine that runs this. */
async function machineCode(): Promise<Uint8Array<ArrayBuffer>> {
  using file = await Deno.open(Deno.execPath());
  const { size } = await file.stat();
  await file.seek(Math.floor(size / 2), Deno.SeekMode.Start);
  const bytes = new Uint8Array(CONTENT_BYTES);
  let read = 0;
  while (read < bytes.length) read += await file.read(bytes.subarray(read)) ?? bytes.length;
  return bytes;
}

/** Words of a vocabulary, the frequent ones more often. */
function text(): Uint8Array<ArrayBuffer> {
  const numbers = randomNumbers();
  const next = () => numbers.next().value;
  const vocabulary = Array.from(
    { length: 4000 },
    () =>
      Array.from({ length: 2 + next() % 9 }, () => String.fromCharCode(97 + next() % 26)).join(""),
  );
  let words = "";
  while (words.length < CONTENT_BYTES) {
    const rank = Math.floor(vocabulary.length ** ((next() % 65536) / 65536)) - 1;
    words += `${vocabulary[rank]} `;
  }
  return new TextEncoder().encode(words).slice(0, CONTENT_BYTES);
}

/** Structures of 64 bytes as a kernel keeps them: pointers, counters, flags, padding. */
function records(): Uint8Array<ArrayBuffer> {
  const numbers = randomNumbers();
  const next = () => numbers.next().value;
  const bytes = new Uint8Array(CONTENT_BYTES);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += 64) {
    view.setUint32(at, 0x8a40_0000 + next() % 0x40_0000, true);
    view.setUint32(at + 4, 0xffff_8881, true);
    view.setUint32(at + 8, 0x8a40_0000 + at, true);
    view.setUint32(at + 12, 0xffff_8881, true);
    view.setUint32(at + 16, next() % 64, true);
    view.setUint32(at + 24, 0x17, true);
    view.setUint32(at + 40, next(), true);
    view.setUint32(at + 48, at / 64, true);
  }
  return bytes;
}

function random(): Uint8Array<ArrayBuffer> {
  const numbers = randomNumbers();
  return new Uint8Array(
    Uint32Array.from({ length: CONTENT_BYTES / 4 }, () => numbers.next().value).buffer,
  );
}

/**
 * Pages and what became of them.
 *
 * @param share Of the pages that change
 * @param changes Places in such a page that change, ten bytes each; Infinity: all of it
 * @returns The contents before and after
 */
export function changedPages(
  pages: number,
  share: number,
  changes: number,
): [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>] {
  const numbers = randomNumbers();
  const next = () => numbers.next().value;
  const before = new Uint8Array(pages * 4096);
  for (let at = 0; at < before.length; at++) before[at] = next() >>> 8;
  const after = before.slice();
  for (let page = 0; page < pages; page++) {
    if (next() / 2 ** 32 >= share) continue;
    const content = after.subarray(page * 4096, (page + 1) * 4096);
    const places = changes === Infinity
      ? [{ at: 0, length: 4096 }]
      : Array.from({ length: changes }, () => ({ at: next() % 4086, length: 10 }));
    for (const { at, length } of places) {
      for (let i = at; i < at + length; i++) content[i] = next() >>> 8;
    }
  }
  return [before, after];
}
