/** `colo checkpoint`: save a running VM, and look after what was saved. */

import { Command } from "@commander-js/extra-typings";
import { StoreError } from "../engine/errors.ts";
import type { SavedOverControl } from "../engine/host/mod.ts";
import { formatBytes } from "../engine/host/mod.ts";
import {
  type CheckpointMetadata,
  prepareRamImage,
  removeRamImage,
  type StoredCheckpoint,
} from "../engine/store/mod.ts";
import { askEngine, findSocket } from "./_control.ts";
import { EXIT } from "./exit_codes.ts";
import { findStore, openStore } from "./_store.ts";

/** A save of a large VM to a slow disk takes as long as it takes. */
const SAVE_TIMEOUT_MS = 24 * 3600 * 1000;

export function checkpointCommand() {
  return new Command("checkpoint")
    .description("save a running VM to disk, and look after what was saved")
    .helpCommand(false)
    .addCommand(saveCommand())
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(verifyCommand())
    .addCommand(prepareCommand())
    .addCommand(deleteCommand());
}

function saveCommand() {
  return new Command("save")
    .description("save the VM that `colo run` runs; the guest goes on meanwhile")
    .argument("<name>", "what the checkpoint is to be called")
    .option("--config <file>", "vm.toml of the running VM")
    .option("--socket <path>", "its control socket, where it is not the one of the config")
    .option("--json", "print one JSON object")
    .action(async (name, options) => {
      const saved = await askEngine(
        await findSocket(options),
        "colo-checkpoint-save",
        { name },
        SAVE_TIMEOUT_MS,
      ) as SavedOverControl;
      if (options.json) return console.log(JSON.stringify(saved));
      console.log(
        `checkpoint ${saved.epoch} saved as ${name}: ${saved.full ? "all" : "what changed"}, ` +
          `${saved.pages} pages, ${formatBytes(saved.bytes)}, ` +
          `in ${saved["duration-ms"].toFixed(0)} ms`,
      );
      for (const retired of saved.retired) console.log(`${retired} is no longer kept`);
      const failure = saved["retain-failure"];
      if (failure !== undefined) console.error(`colo: ${failure}`);
    });
}

function listCommand() {
  return new Command("list")
    .description("list stored checkpoints, oldest first")
    .option("--store <dir>", "directory of the store")
    .option("--config <file>", "vm.toml that names the store")
    .option("--json", "print one JSON object a checkpoint")
    .action(async (options) => {
      const { directory } = await findStore(options);
      const entries = openStore(directory).list();
      if (options.json) { for (const entry of entries) console.log(JSON.stringify(entry)); }
      else for (const line of formatList(entries)) console.log(line);
    });
}

function showCommand() {
  return new Command("show")
    .description("show what a stored checkpoint is")
    .argument("<name>", "which one")
    .option("--store <dir>", "directory of the store")
    .option("--config <file>", "vm.toml that names the store")
    .option("--json", "print one JSON object")
    .action(async (name, options) => {
      const { directory } = await findStore(options);
      const entries = openStore(directory).list();
      const entry = entries.find((candidate) => candidate.name === name);
      if (entry === undefined) throw new StoreError(`Cannot find checkpoint ${name}`);
      if (entry.metadata === undefined) throw new StoreError(`${entry.damage}`);
      if (options.json) return console.log(JSON.stringify(entry));
      for (const line of formatEntry(entry, entry.metadata, entries)) console.log(line);
    });
}

function verifyCommand() {
  return new Command("verify")
    .description("read stored checkpoints to the last byte, and check that they add up")
    .argument("[names...]", "which ones (default: all)")
    .option("--store <dir>", "directory of the store")
    .option("--config <file>", "vm.toml that names the store")
    .action(async (names, options) => {
      const { directory } = await findStore(options);
      const store = openStore(directory);
      const wanted = names.length > 0 ? names : store.list().map(({ name }) => name);
      for (const name of wanted) {
        try {
          store.verify(name);
          console.log(`${name} is whole`);
        } catch (error) {
          if (!(error instanceof StoreError)) throw error;
          console.error(`colo: ${error.message}`);
          Deno.exitCode = EXIT.FAILED;
        }
      }
    });
}

function prepareCommand() {
  return new Command("prepare")
    .description("make the RAM image that `colo restore --instant` starts from in milliseconds")
    .argument("<name>", "which checkpoint")
    .option("--store <dir>", "directory of the store")
    .option("--config <file>", "vm.toml that names the store")
    .action(async (name, options) => {
      const { directory, images } = await findStore(options);
      const chain = openStore(directory).open(name);
      try {
        prepareRamImage(chain, images);
      } finally {
        chain.close();
      }
      console.log(`${name} is ready in ${images}`);
    });
}

function deleteCommand() {
  return new Command("delete")
    .description("delete stored checkpoints; those that build upon them are kept whole")
    .argument("<names...>", "which ones")
    .option("--store <dir>", "directory of the store")
    .option("--config <file>", "vm.toml that names the store")
    .action(async (names, options) => {
      const { directory, images } = await findStore(options);
      const store = openStore(directory);
      for (const name of names) {
        store.delete(name);
        removeRamImage(name, images);
        console.log(`${name} is deleted`);
      }
    });
}

function formatList(entries: readonly StoredCheckpoint[]): string[] {
  const rows = entries.map(({ name, sizeBytes, metadata }) => [
    name,
    metadata === undefined ? "damaged" : time(metadata),
    metadata?.vm ?? "",
    metadata === undefined ? "" : metadata.parent === undefined ? "full" : "difference",
    formatBytes(sizeBytes),
  ]);
  const table = [["NAME", "SAVED", "VM", "KIND", "SIZE"], ...rows];
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)));
  return table.map((row) =>
    row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ").trimEnd()
  );
}

function formatEntry(
  { name, sizeBytes }: StoredCheckpoint,
  metadata: CheckpointMetadata,
  entries: readonly StoredCheckpoint[],
): string[] {
  const { parent, blocks } = metadata;
  const from = entries.find((entry) => entry.metadata?.id === parent?.id)?.name ?? "one not here";
  const ramBytes = blocks.reduce((sum, block) => sum + block.sizeBytes, 0);
  return [
    `name     ${name}`,
    `vm       ${metadata.vm}`,
    `machine  ${metadata.machine}`,
    `saved    ${time(metadata)}, checkpoint ${metadata.epoch} of its run`,
    `kind     ${parent === undefined ? "full" : `difference from ${from}`}`,
    `size     ${formatBytes(sizeBytes)}, ${metadata.pages} pages`,
    `memory   ${formatBytes(ramBytes)} in ${blocks.length} blocks`,
    `devices  ${formatBytes(metadata.deviceStateBytes)}`,
    `id       ${metadata.id}`,
    `digest   ${metadata.stateDigest}`,
  ];
}

function time({ savedAtMs }: CheckpointMetadata): string {
  return new Date(savedAtMs).toISOString().replace("T", " ").slice(0, 19) + "Z";
}
