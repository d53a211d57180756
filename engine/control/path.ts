/**
 * Where the control socket of a VM is, unless its config says otherwise.
 *
 * @module
 */

import { ColoError } from "../errors.ts";

/**
 * The path for a VM: `$XDG_RUNTIME_DIR/colo/NAME.sock`, else `/tmp/colo-UID/NAME.sock`.
 *
 * @throws {ColoError} when the directory belongs to another user, who could listen in our place
 */
export function defaultControlPath(vmName: string): string {
  const runtime = Deno.env.get("XDG_RUNTIME_DIR");
  const user = Deno.uid();
  const directory = runtime ? `${runtime}/colo` : `/tmp/colo-${user}`;
  const info = statOf(directory);
  if (info !== undefined && (!info.isDirectory || info.uid !== user)) {
    throw new ColoError(
      `Cannot use ${directory} for control sockets: it is no directory of this user's; ` +
        "set XDG_RUNTIME_DIR or give [control] socket",
    );
  }
  return `${directory}/${vmName}.sock`;
}

function statOf(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.lstatSync(path);
  } catch {
    return undefined;
  }
}
