/** What several tests of engine/vm need. */

/** Run a test in a directory of its own, which goes with it. */
export async function inTemporaryDirectory(
  test: (directory: string) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    await test(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/**
 * Run a module in a process of its own, because the environment belongs to the whole process.
 *
 * @param env Changes to the environment; an empty value counts as none
 * @returns What it wrote
 */
export async function evaluate(code: string, env: Record<string, string> = {}): Promise<string> {
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--quiet", code],
    cwd: import.meta.dirname ?? ".",
    env: { NO_COLOR: "1", DENO_DIR: denoDirectory(), ...env },
  }).output();
  return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
}

function denoDirectory(): string {
  return Deno.env.get("DENO_DIR") ?? `${Deno.env.get("HOME")}/.cache/deno`;
}
