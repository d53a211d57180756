/** `colo inspect`: what is in a captured migration stream. */

import { Command } from "@commander-js/extra-typings";
import { ConfigError, messageOf } from "../engine/errors.ts";
import { formatInspection, StreamInspector } from "../engine/stream/inspect.ts";

export function inspectCommand() {
  return new Command("inspect")
    .description("decode a captured migration stream: blocks, pages, sections, checkpoints")
    .argument("<file>", "a file that `colo run --record` or QEMU's `migrate file:` wrote")
    .option("--json", "print one JSON object")
    .action(async (path, { json }) => {
      const inspector = new StreamInspector();
      let file: Deno.FsFile;
      try {
        file = await Deno.open(path);
      } catch (error) {
        throw new ConfigError(`Cannot open ${path}: ${messageOf(error)}`);
      }
      const { isDirectory } = await file.stat();
      if (isDirectory) throw new ConfigError(`Cannot inspect ${path}: it is a directory`);
      for await (const chunk of file.readable) inspector.push(chunk);
      const inspection = inspector.finish();
      console.log(json ? JSON.stringify(inspection, null, 2) : formatInspection(inspection));
    });
}
