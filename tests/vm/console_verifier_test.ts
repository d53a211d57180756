import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { createHash } from "node:crypto";
import { ConsoleVerifier } from "../../engine/vm/console_verifier.ts";

const NONCE = "00112233445566778899aabbccddeeff";
const FILE = "f".repeat(64);

/** Computed once with `sha256sum`, so that the definition itself is pinned. */
const CHAIN_0 = "12a99b1d6538cd24426637e7ea3b5dd9e888d7acb898eca2186c9a3a6bc4890f";
const CHAIN_1 = "b16ab1e8f895f43b86835f7277ecd9e8ac767ea8f30f157960cb3d9261a5e004";

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** The console of a guest up to a tick. */
function consoleText(ticks: number, nonce = NONCE): string {
  let chain = sha256(`colo${nonce}`);
  const lines = [`colo-boot nonce=${nonce} chain=${chain} file=${FILE}`];
  for (let n = 1; n <= ticks; n++) {
    chain = sha256(`${chain} ${n}`);
    lines.push(`colo-tick ${n} up=${(3 + n / 2).toFixed(2)} chain=${chain} file=ok`);
  }
  return lines.join("\r\n") + "\r\n";
}

Deno.test("ConsoleVerifier follows the chain from the boot line", () => {
  assertEquals(sha256(`colo${NONCE}`), CHAIN_0);
  const verifier = new ConsoleVerifier();
  const ticks = verifier.push(consoleText(2));
  assertEquals(verifier.boot, { nonce: NONCE, chain: CHAIN_0, fileSha256: FILE });
  assertEquals(ticks[0], { n: 1, uptimeSeconds: 3.5, chain: CHAIN_1, fileOk: true, chainOk: true });
  assertEquals(ticks.map(({ n, chainOk }) => [n, chainOk]), [[1, true], [2, true]]);
});

Deno.test("ConsoleVerifier gives the same ticks for any chunking", () => {
  const text = "[    0.0] Linux\r\n" + consoleText(5) + "[    9.0] oops\r\n";
  const whole = new ConsoleVerifier().push(text);
  assertEquals(whole.length, 5);
  fc.assert(fc.property(fc.array(fc.nat(text.length)), (cuts) => {
    const edges = [0, ...cuts.toSorted((a, b) => a - b), text.length];
    const verifier = new ConsoleVerifier();
    const ticks = edges.flatMap((edge, index) => verifier.push(text.slice(edges[index - 1], edge)));
    assertEquals(ticks, whole);
  }));
});

Deno.test("ConsoleVerifier never calls a foreign chain right", () => {
  const verifier = new ConsoleVerifier();
  verifier.push(consoleText(3));
  const digit = fc.constantFrom(..."0123456789abcdef");
  const chain = fc.array(digit, { minLength: 64, maxLength: 64 }).map((digits) => digits.join(""));
  fc.assert(fc.property(fc.nat(300), chain, (n, chain) => {
    const [tick] = verifier.push(`colo-tick ${n} up=1.00 chain=${chain} file=ok\n`);
    return tick?.n === n && !tick.chainOk;
  }));
});

Deno.test("ConsoleVerifier notices a wrong file, number and chain", () => {
  const verifier = new ConsoleVerifier();
  const line = consoleText(1).split("\r\n")[1] ?? "";
  verifier.push(consoleText(0));
  const push = (text: string) => verifier.push(text + "\n")[0];
  assertEquals(push(line)?.chainOk, true);
  assertEquals(push(line.replace("file=ok", "file=BAD"))?.fileOk, false);
  assertEquals(push(line.replace("colo-tick 1", "colo-tick 2"))?.chainOk, false);
});

Deno.test("ConsoleVerifier takes a secondary's console over from the boot facts", () => {
  const text = consoleText(300);
  const primary = new ConsoleVerifier();
  primary.push(text.slice(0, 2000));
  // The secondary's console begins in the middle of the line that was being written.
  const secondary = new ConsoleVerifier(primary.boot);
  const ticks = secondary.push(text.slice(text.indexOf("colo-tick 200 ") + 30));
  assertEquals(ticks[0]?.n, 201);
  assertEquals(ticks.length, 100);
  assert(ticks.every(({ chainOk }) => chainOk));
});

Deno.test("ConsoleVerifier verifies ticks that fell back in time", () => {
  const lines = consoleText(200).split("\r\n");
  const verifier = new ConsoleVerifier();
  verifier.push(lines.join("\n"));
  const again = [150, 1, 64, 65, 128].map((n) => verifier.push(`${lines[n]}\n`)[0]);
  assert(again.every((tick) => tick?.chainOk));
});

Deno.test("ConsoleVerifier trusts no tick before the boot line", () => {
  const verifier = new ConsoleVerifier();
  const [boot = "", tick = ""] = consoleText(1).split("\r\n");
  assertEquals(verifier.push(`${tick}\n`)[0]?.chainOk, false);
  verifier.push(`${boot}\n`);
  assertEquals(verifier.push(`${tick}\n`)[0]?.chainOk, true);
});

Deno.test("ConsoleVerifier does not take another machine's boot for this one's", () => {
  const verifier = new ConsoleVerifier();
  verifier.push(consoleText(2));
  const ticks = verifier.push(consoleText(2, "f".repeat(32)));
  assertEquals(ticks.map(({ chainOk }) => chainOk), [false, false]);
  assertEquals(verifier.boot?.nonce, NONCE);
});

Deno.test("ConsoleVerifier passes over a boot line that contradicts itself", () => {
  const verifier = new ConsoleVerifier();
  verifier.push(`colo-boot nonce=${NONCE} chain=${CHAIN_1} file=${FILE}\n`);
  assertEquals(verifier.boot, undefined);
});

Deno.test("ConsoleVerifier passes over lines that others wrote into", () => {
  const [boot, tick = ""] = consoleText(1).split("\r\n");
  const torn = `${tick.slice(0, 40)}[    4.2] eth0: link\r\n${tick.slice(40)}\r\n`;
  const verifier = new ConsoleVerifier();
  assertEquals(verifier.push(`${boot}\r\n${torn}`), []);
  const prefixed = verifier.push(`[    4.2] eth0: link ${tick}\r\n`);
  assertEquals(prefixed.map(({ chainOk }) => chainOk), [true]);
});

Deno.test("ConsoleVerifier does not compute for ever on an absurd number", () => {
  const verifier = new ConsoleVerifier();
  verifier.push(consoleText(1));
  const [tick] = verifier.push(`colo-tick 999999999999 up=1.00 chain=${FILE} file=ok\n`);
  assertEquals(tick?.chainOk, false);
});

Deno.test("ConsoleVerifier throws a line without an end away", () => {
  const verifier = new ConsoleVerifier();
  for (let index = 0; index < 100; index++) verifier.push("x".repeat(10_000));
  assertEquals(verifier.push("\n" + consoleText(1)).length, 1);
});
