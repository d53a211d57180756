import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import { QemuError } from "../../engine/errors.ts";
import { startQemu } from "../../engine/vm/process.ts";
import { inTemporaryDirectory } from "./_support.ts";

/** A shell script in place of QEMU. */
function script(text: string) {
  return { command: ["/bin/sh", "-c", text, "qemu"], env: {} };
}

const NEVER = new Promise<never>(() => {});

Deno.test("startQemu() waits for the path that shows QEMU is up", () =>
  inTemporaryDirectory(async (directory) => {
    const readyPath = join(directory, "qmp");
    await Deno.writeTextFile(readyPath, "left by an earlier run");
    const qemu = script('sleep 0.1; echo new >"$1"; exec sleep 60');
    const process = await startQemu({ qemu, args: [readyPath], name: "primary", readyPath });
    try {
      assertEquals(await Deno.readTextFile(readyPath), "new\n");
    } finally {
      await process.stop();
    }
  }));

Deno.test("startQemu() fails with QEMU's last words when it ends before it is up", async () => {
  const qemu = script(
    "echo warning >&2; echo \"qemu-system-x86_64: -netdev tap: could not open '/dev/net/tun'\" >&2; exit 1",
  );
  await assertRejects(
    () => startQemu({ qemu, args: [], name: "primary", readyPath: "/nonexistent/qmp" }),
    QemuError,
    "Cannot start QEMU primary: -netdev tap: could not open '/dev/net/tun'",
  );
});

Deno.test("startQemu() says how a QEMU without last words ended", async () => {
  const start = (text: string) =>
    startQemu({ qemu: script(text), args: [], name: "primary", readyPath: "/nonexistent/qmp" });
  await assertRejects(() => start("exit 7"), QemuError, "it ended with exit code 7");
  await assertRejects(() => start("kill -KILL $$"), QemuError, "it was ended by SIGKILL");
});

Deno.test("startQemu() fails when there is no such program", async () => {
  const qemu = { command: ["/nonexistent/qemu"], env: {} };
  await assertRejects(
    () => startQemu({ qemu, args: [], name: "primary" }),
    QemuError,
    "Cannot start QEMU primary:",
  );
});

Deno.test("startQemu() passes the environment on and copies standard error to a log", () =>
  inTemporaryDirectory(async (directory) => {
    const logPath = join(directory, "log");
    const qemu = {
      ...script(
        'echo "$MODULES $1" >&2; i=0; while [ $i -lt 900 ]; do echo line $i >&2; i=$((i+1)); done',
      ),
      env: { MODULES: "here" },
    };
    const process = await startQemu({ qemu, args: ["argument"], name: "primary", logPath });
    const { code, signal, stderrTail } = await process.exited;
    assertEquals([code, signal], [0, null]);
    assert(stderrTail.endsWith("line 899\n") && stderrTail.length <= 4096);
    const log = await Deno.readTextFile(logPath);
    assert(log.startsWith("here argument\nline 0\n") && log.endsWith("line 899\n"));
  }));

Deno.test("QemuProcess.kill() ends it, and does nothing after that", async () => {
  const process = await startQemu({ qemu: script("exec sleep 60"), args: [], name: "primary" });
  process.kill();
  assertEquals((await process.exited).signal, "SIGKILL");
  process.kill();
  process.kill("SIGSTOP");
});

Deno.test("QemuProcess.stop() asks first, and may be called again", async () => {
  const process = await startQemu({ qemu: script("exec sleep 60"), args: [], name: "primary" });
  await Promise.all([process.stop(), process.stop()]);
  await process.stop();
  assertEquals((await process.exited).signal, "SIGTERM");
});

Deno.test("QemuProcess.stop() kills a QEMU that does not listen", () =>
  inTemporaryDirectory(async (directory) => {
    const readyPath = join(directory, "deaf");
    const qemu = script("trap '' TERM; echo >\"$1\"; exec sleep 60");
    const process = await startQemu({ qemu, args: [readyPath], name: "primary", readyPath });
    const startMs = performance.now();
    await process.stop();
    assertEquals((await process.exited).signal, "SIGKILL");
    const tookMs = performance.now() - startMs;
    assert(tookMs > 1900 && tookMs < 5000, `${tookMs} ms`);
  }));

Deno.test("QemuProcess.whileAlive() gives up when QEMU ends", async () => {
  const qemu = script("sleep 0.1; echo 'no machine specified' >&2; exit 1");
  const process = await startQemu({ qemu, args: [], name: "secondary" });
  assertEquals(await process.whileAlive(Promise.resolve("greeting")), "greeting");
  await assertRejects(() => process.whileAlive(NEVER), QemuError, "no machine specified");
});

Deno.test("QemuProcess.whileAlive() blames QEMU's end for a connection that broke with it", async () => {
  const qemu = script("sleep 0.05; echo 'out of memory' >&2; exit 1");
  const process = await startQemu({ qemu, args: [], name: "secondary" });
  const broken = Promise.reject(new Error("connection reset"));
  await assertRejects(() => process.whileAlive(broken), QemuError, "out of memory");
});

Deno.test("QemuProcess.whileAlive() passes a failure on while QEMU lives", async () => {
  const process = await startQemu({ qemu: script("exec sleep 60"), args: [], name: "secondary" });
  try {
    const broken = Promise.reject(new Error("not QMP"));
    await assertRejects(() => process.whileAlive(broken), Error, "not QMP");
  } finally {
    await process.stop();
  }
});
