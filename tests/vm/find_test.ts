import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { dirname, join } from "@std/path/mod.js";
import { QemuError } from "../../engine/errors.ts";
import { findQemu, type Qemu, qemuTool } from "../../engine/vm/find.ts";
import { privateLaunch } from "../../engine/vm/private_qemu.ts";
import { probeQemu } from "../../engine/vm/probe.ts";
import { evaluate, inTemporaryDirectory } from "./_support.ts";

/** A program that answers QMP like a QEMU of some version. */
async function withFakeQemu(
  answers: { version: string; capabilities?: readonly string[]; kvm?: boolean },
  test: (path: string) => Promise<void>,
): Promise<void> {
  const [major, minor, micro] = answers.version.split(".").map(Number);
  const replies = [
    { QMP: { version: {}, capabilities: [] } },
    { return: {}, id: "qmp_capabilities" },
    { return: { qemu: { major, minor, micro }, package: "" }, id: "query-version" },
    {
      return: (answers.capabilities ?? ["xbzrle", "return-path", "x-colo"])
        .map((capability) => ({ capability, state: false })),
      id: "query-migrate-capabilities",
    },
    { return: { enabled: false, present: answers.kvm ?? true }, id: "query-kvm" },
    { event: "SHUTDOWN", data: {} },
    { return: {}, id: "quit" },
  ];
  const lines = replies.map((reply) => JSON.stringify(reply)).join("\n");
  await withProgram(`#!/bin/sh\ncat <<'END'\n${lines}\nEND\n`, test);
}

async function withProgram(text: string, test: (path: string) => Promise<void>): Promise<void> {
  await inTemporaryDirectory(async (directory) => {
    const path = join(directory, "qemu-system-x86_64");
    await Deno.writeTextFile(path, text, { mode: 0o755 });
    await test(path);
  });
}

Deno.test("findQemu() takes the QEMU that was named", () =>
  withFakeQemu({ version: "11.1.3" }, async (path) => {
    assertEquals(await findQemu({ path, accel: "tcg", role: "primary" }), {
      command: [path],
      env: {},
      version: "11.1.3",
      accel: "tcg",
      source: "option",
      capabilities: ["return-path", "x-colo"],
    });
  }));

Deno.test("findQemu() judges the named QEMU by its role", () =>
  withFakeQemu({ version: "7.2.22" }, async (path) => {
    const secondary = await findQemu({ path, accel: "tcg", role: "secondary" });
    assertEquals(secondary.capabilities, ["x-colo"]);
    const error = await assertRejects(
      () => findQemu({ path, accel: "tcg", role: "primary" }),
      QemuError,
    );
    assertEquals(
      error.message,
      `Cannot use QEMU 7.2.22 (${path}) as a primary: it deadlocks in its first checkpoint under ` +
        "TCG; name QEMU 11.1 or newer with --qemu, or leave it out to have one found",
    );
  }));

Deno.test("findQemu() refuses KVM to a QEMU without it", () =>
  withFakeQemu({ version: "11.1.3", kvm: false }, async (path) => {
    await assertRejects(
      () => findQemu({ path, accel: "kvm", role: "secondary" }),
      QemuError,
      "as a secondary: it was built without KVM",
    );
  }));

Deno.test("findQemu() refuses a path where there is nothing", async () => {
  await assertRejects(
    () => findQemu({ path: "/nonexistent/qemu", role: "primary" }),
    QemuError,
    "Cannot use QEMU /nonexistent/qemu: no such program; correct --qemu",
  );
});

Deno.test("findQemu() says what a program that is no QEMU said", () =>
  withProgram("#!/bin/sh\necho 'no such option' >&2\nexit 3\n", async (path) => {
    await assertRejects(
      () => findQemu({ path, role: "primary" }),
      QemuError,
      `Cannot use ${path} as QEMU: no such option`,
    );
  }));

Deno.test("findQemu() takes COLO_QEMU before the machine's own, and names it in errors", async () => {
  const module = import.meta.resolve("../../engine/vm/find.ts");
  const code = `
    import { findQemu } from ${JSON.stringify(module)};
    for (const role of ["secondary", "primary"]) {
      try {
        const { source, version } = await findQemu({ accel: "tcg", role });
        console.log(role, source, version);
      } catch (error) {
        console.log(role, error.message);
      }
    }`;
  await withFakeQemu({ version: "10.0.2" }, async (path) => {
    const [first, second = ""] = (await evaluate(code, { COLO_QEMU: path })).split("\n");
    assertEquals(first, "secondary environment 10.0.2");
    assertStringIncludes(second, "with COLO_QEMU");
  });
});

Deno.test("findQemu() takes the machine's own QEMU when it can do it", async () => {
  const module = import.meta.resolve("../../engine/vm/find.ts");
  const code = `
    import { findQemu } from ${JSON.stringify(module)};
    const { source, command } = await findQemu({ accel: "tcg", role: "secondary" });
    console.log(source, command.join(" "));`;
  await withFakeQemu({ version: "10.0.13" }, async (path) => {
    const env = { COLO_QEMU: "", PATH: `${dirname(path)}:${Deno.env.get("PATH")}` };
    assertEquals(await evaluate(code, env), `system ${path}\n`);
  });
});

Deno.test("findQemu() says what to install where nothing can be fetched", () =>
  inTemporaryDirectory(async (directory) => {
    const module = import.meta.resolve("../../engine/vm/find.ts");
    const code = `
      import { findQemu } from ${JSON.stringify(module)};
      await findQemu({ accel: "tcg", role: "primary" }).catch(({ message }) => console.log(message));`;
    const env = { COLO_QEMU: "", PATH: directory, XDG_CACHE_HOME: directory };
    assertEquals(
      await evaluate(code, env),
      "Cannot fetch QEMU on this machine: it has no apt-get; install QEMU 11.1 or newer and name " +
        "it with --qemu PATH or COLO_QEMU\n",
    );
  }));

Deno.test("findQemu() passes over the machine's own QEMU when it cannot do it, and says so", async () => {
  const module = import.meta.resolve("../../engine/vm/find.ts");
  const code = `
    import { findQemu } from ${JSON.stringify(module)};
    await findQemu({ accel: "tcg", role: "primary", progress: (line) => console.log(line) })
      .catch(() => {});`;
  await withFakeQemu({ version: "7.2.22" }, async (path) => {
    // With a PATH that lacks what a fetch needs, it ends there.
    const bin = join(dirname(path), "bin");
    await Deno.mkdir(bin);
    await Deno.symlink("/bin/cat", join(bin, "cat"));
    const env = {
      COLO_QEMU: "",
      PATH: `${dirname(path)}:${bin}`,
      XDG_CACHE_HOME: dirname(path),
    };
    assertEquals(
      await evaluate(code, env),
      `passing over QEMU 7.2.22 (${path}): as a primary, it deadlocks in its first checkpoint ` +
        "under TCG\n",
    );
  });
});

Deno.test("probeQemu() reads version, capabilities and KVM", () =>
  withFakeQemu({ version: "8.2.1", capabilities: ["x-colo"], kvm: true }, async (path) => {
    assertEquals(await probeQemu([path]), {
      version: "8.2.1",
      capabilities: ["x-colo"],
      hasKvm: true,
    });
  }));

Deno.test("qemuTool() takes the tool that lies beside a fetched QEMU", () => {
  const launch = privateLaunch("/cache/qemu");
  const qemu: Qemu = {
    ...launch,
    version: "11.1.3",
    accel: "tcg",
    source: "fetched",
    capabilities: [],
  };
  assertEquals(launch.command.slice(0, 4), [
    "/cache/qemu/usr/lib64/ld-linux-x86-64.so.2",
    "--library-path",
    "/cache/qemu/usr/lib/x86_64-linux-gnu:/cache/qemu/usr/lib",
    "/cache/qemu/usr/bin/qemu-system-x86_64",
  ]);
  assertEquals(qemuTool("qemu-img", qemu), [
    ...launch.command.slice(0, 3),
    "/cache/qemu/usr/bin/qemu-img",
  ]);
  assertEquals(qemuTool("qemu-nbd", { ...qemu, source: "system" }), ["qemu-nbd"]);
  assert(launch.env["QEMU_MODULE_DIR"]?.startsWith("/cache/qemu/"));
});
