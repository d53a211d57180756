import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { EXIT, EXIT_CODES_HELP } from "../../cli/exit_codes.ts";
import { initialStream } from "../stream/sample.ts";
import { colo } from "./_colo.ts";

/** Run a test with files of its own. */
async function withFiles(
  files: Readonly<Record<string, string | Uint8Array>>,
  test: (directory: string) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    for (const [name, content] of Object.entries(files)) {
      const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
      await Deno.writeFile(`${directory}/${name}`, bytes);
    }
    await test(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

const VM = '[vm]\nname = "a"\nmemory = 64\nkernel = "vm.toml"\n';

// Where the config is right, this stops the command before anything is started or fetched.
const NO_QEMU = ["--qemu", "/no/such/qemu"];

Deno.test("colo refuses a wrong command line with exit code 2", async () => {
  const cases: [readonly string[], string][] = [
    [[], "Usage: colo"],
    [["protect"], "unknown command 'protect'"],
    [["demo", "--memroy", "128"], "Did you mean --memory?"],
    [["demo", "--memory", "63"], "It must be a whole number from 64 to 65536."],
    [["demo", "--memory", "128MiB"], "It must be a whole number"],
    [["demo", "--checkpoints", "0"], "It must be a whole number from 1 to"],
    [["demo", "--period", "1.5"], "It must be a whole number from 10 to"],
    [["demo", "--mode", "remus"], "Allowed choices are colo"],
    [["demo", "more"], "too many arguments"],
    [["run"], "missing required argument 'config'"],
    [["standby"], "missing required argument 'config'"],
    [["inspect"], "missing required argument 'file'"],
    [["doctor", "--qemu"], "argument missing"],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await colo(args);
    assertEquals({ args, code, stdout }, { args, code: EXIT.USAGE, stdout: "" });
    assertStringIncludes(stderr, message);
  }
});

Deno.test("colo refuses a wrong config with exit code 2 and one sentence", async () => {
  const files = {
    "no.toml": "this is no TOML",
    "empty.toml": "",
    "typo.toml": VM + "[replication]\nperoid = 100\n",
    "vm.toml": VM,
    "kernel.toml": VM.replace("vm.toml", "no-kernel"),
  };
  await withFiles(files, async (directory) => {
    const cases: [readonly string[], string][] = [
      [["run", "missing.toml"], "there is no such file"],
      [["standby", "missing.toml"], "there is no such file"],
      [["run", "."], "Cannot read"],
      [["run", "no.toml"], "no TOML"],
      [["run", "empty.toml"], "vm.name is missing"],
      [["run", "typo.toml"], "did you mean period"],
      [["run", "kernel.toml"], "no-kernel"],
      // What is missing for one side alone comes to light before a QEMU is looked for.
      [["run", "vm.toml"], "replication.peer is missing"],
      [["standby", "vm.toml"], "replication.listen is missing"],
    ];
    for (const [[command = "", file = ""], message] of cases) {
      const path = `${directory}/${file}`;
      const { code, stdout, stderr } = await colo([command, path, ...NO_QEMU]);
      assertStringIncludes(stderr, message);
      assertEquals({ file, code, stdout }, { file, code: EXIT.USAGE, stdout: "" });
      assertSentence(stderr);
      assertStringIncludes(stderr, path);
    }
  });
});

Deno.test("colo run and colo standby refuse a QEMU that is not there with exit code 1", async () => {
  const toml = VM + '[replication]\npeer = "127.0.0.1:1"\nlisten = "127.0.0.1:1"\n';
  await withFiles({ "vm.toml": toml }, async (directory) => {
    for (const command of ["run", "standby"]) {
      const { code, stderr } = await colo([command, `${directory}/vm.toml`, ...NO_QEMU]);
      assertEquals(code, EXIT.FAILED);
      assertSentence(stderr);
      assertStringIncludes(stderr, "/no/such/qemu: no such program");
    }
  });
});

Deno.test("colo inspect says what is wrong with a file", async () => {
  const files = { "text": "Hello, world", "stream": initialStream([]) };
  await withFiles(files, async (directory) => {
    const cases: [string, number, string][] = [
      ["missing", EXIT.USAGE, "Cannot open"],
      ["", EXIT.USAGE, "it is a directory"],
      ["text", EXIT.FAILED, "this is no migration stream (at byte 0)"],
    ];
    for (const [file, expected, message] of cases) {
      const { code, stdout, stderr } = await colo(["inspect", `${directory}/${file}`]);
      assertEquals({ file, code, stdout }, { file, code: expected, stdout: "" });
      assertSentence(stderr);
      assertStringIncludes(stderr, message);
    }
    const { code, stdout, stderr } = await colo(["inspect", "--json", `${directory}/stream`]);
    assertEquals({ code, stderr }, { code: EXIT.OK, stderr: "" });
    assertEquals(JSON.parse(stdout).machine, "pc-i440fx-11.1");
  });
});

Deno.test("colo demo says before it starts that it cannot keep its logs", async () => {
  await withFiles({ "file": "" }, async (directory) => {
    const args = ["demo", "--keep-logs", `${directory}/file/logs`, ...NO_QEMU];
    const { code, stderr } = await colo(args);
    assertEquals(code, EXIT.USAGE);
    assertSentence(stderr);
    assertStringIncludes(stderr, "Cannot keep logs");
  });
});

Deno.test("colo demo says that it has no place for temporary files", async () => {
  const { code, stderr } = await colo(["demo", ...NO_QEMU], { TMPDIR: "/no/such/directory" });
  assertEquals(code, EXIT.FAILED);
  assertSentence(stderr);
  assertStringIncludes(stderr, "set TMPDIR");
});

Deno.test("colo's help lists every exit code", () => {
  const listed = EXIT_CODES_HELP.matchAll(/^ {2}(\d+) /gm).map(([, code]) => Number(code));
  assertEquals([...listed], Object.values(EXIT));
});

/** One line for a person, and no stack trace. */
function assertSentence(stderr: string): void {
  const lines = stderr.trimEnd().split("\n");
  assertEquals(lines.length, 1, stderr);
  assert(/^colo: Cannot \w+ .*[^.]$/.test(lines[0]!), stderr);
}
