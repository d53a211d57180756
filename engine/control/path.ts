/**
 * Where engines have their sockets, unless a config says otherwise.
 *
 * @module
 */

import { ColoError } from "../errors.ts";

/**
 * The path of a VM's control socket: `NAME.sock` in {@linkcode runtimeDirectory}.
 *
 * @throws {ColoError} as that does
 */
export function defaultControlPath(vmName: string): string {
  return `${runtimeDirectory()}/${vmName}.sock`;
}

/** The path of the control socket of a VM's standby, which may be on the same host. */
export function standbyControlPath(controlPath: string): string {
  return `${controlPath.replace(/\.sock$/, "")}-standby.sock`;
}

/**
 * Where this user's engines have what lives as long as the machine runs: `$XDG_RUNTIME_DIR/colo`, else
 * `/tmp/colo-UID`. It may not exist yet.
 *
 * @throws {ColoError} when it belongs to another user, who could listen in our place
 */
export function runtimeDirectory(): string {
  const runtime = Deno.env.get("XDG_RUNTIME_DIR");
  const user = Deno.uid();
  const directory = runtime ? `${runtime}/colo` : `/tmp/colo-${user}`;
  const info = statOf(directory);
  if (info !== undefined && (!info.isDirectory || info.uid !== user)) {
    throw new ColoError(
      `Cannot use ${directory} for sockets: it is no directory of this user's; ` +
        "set XDG_RUNTIME_DIR",
    );
  }
  return directory;
}

function statOf(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.lstatSync(path);
  } catch {
    return undefined;
  }
}
