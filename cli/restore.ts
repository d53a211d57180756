/** `colo restore`: start a VM from a stored checkpoint. */

import { Command } from "@commander-js/extra-typings";
import { loadVmConfig } from "../engine/config/mod.ts";
import { ConfigError, QemuError } from "../engine/errors.ts";
import {
  createArbiter,
  PrimaryHost,
  type RestoreSource,
  type RunDirectory,
  runRestored,
} from "../engine/host/mod.ts";
import {
  type Chain,
  exportStream,
  prepareRamImage,
  type RamImage,
  takeRamImage,
} from "../engine/store/mod.ts";
import { findQemu } from "../engine/vm/mod.ts";
import { WasmKernels } from "../wasm/mod.ts";
import { EXIT } from "./exit_codes.ts";
import { inRunDirectory, interruptible, lineReporter, progress } from "./shared.ts";
import { findStore, openStore } from "./_store.ts";

export function restoreCommand() {
  return new Command("restore")
    .description(
      "start a VM where a stored checkpoint left it; protected where a peer or etcd is configured",
    )
    .argument("<name>", "which checkpoint")
    .requiredOption("--config <file>", "vm.toml of this host, with the devices of the saved VM")
    .option("--store <dir>", "directory of the store, where it is not the one of the config")
    .option("--instant", "run on a RAM image, which is made first unless it is prepared")
    .option(
      "--alone",
      "run it though the other host does not answer: you know that it is not there",
    )
    .option("--qemu <path>", "QEMU to use (default: COLO_QEMU, the system's, or a private one)")
    .option("--json", "print every event as one JSON object a line")
    .action(async (name, options) => {
      const config = await loadVmConfig(options.config);
      const place = await findStore(options);
      const chain = openStore(place.directory).open(name);
      try {
        checkMemory(chain, config.vm.memoryMiB, options.config);
        const { replication: { peer }, failover: { arbiter } } = config;
        // Where there is an arbiter the VM runs by its leave, and is protected by whoever stands by.
        const isProtected = peer !== undefined || arbiter === "etcd";
        const qemu = await findQemu({
          path: options.qemu ?? config.qemuPath,
          accel: config.vm.accel,
          role: isProtected ? "primary" : "secondary",
          progress,
        });
        Deno.exitCode = await interruptible((signal) =>
          inRunDirectory(config, async (run) => {
            checkNotRunning(run);
            const source = options.instant
              ? instantSource(chain, place.images)
              : streamSource(chain);
            const report = lineReporter(options.json ?? false);
            const common = { config, qemu, directory: run.path, run, report };
            if (!isProtected) {
              const end = await runRestored({ ...common, source }, signal);
              return end === "stopped" ? EXIT.INTERRUPTED : exitOf(end);
            }
            const host = new PrimaryHost({
              ...common,
              arbiter: createArbiter(config),
              restore: source,
              isOrdered: options.alone,
            });
            signal.addEventListener("abort", () => host.stop("the operator ended it"));
            const end = await host.run();
            return signal.aborted ? EXIT.INTERRUPTED : exitOf(end);
          })
        );
      } finally {
        chain.close();
      }
    });
}

function exitOf(end: string): number {
  return end === "qemu-lost" ? EXIT.LOST : EXIT.OK;
}

function checkNotRunning({ record }: RunDirectory): void {
  if (record?.runsVm !== true) return;
  throw new QemuError(
    `Cannot restore: the VM runs already, as process ${record.pid}; end it first`,
  );
}

/** QEMU would say it in other words, and only after it was started. */
function checkMemory(chain: Chain, memoryMiB: number, path: string): void {
  const savedBytes = Math.max(...chain.blocks.map(({ sizeBytes }) => sizeBytes));
  if (savedBytes === memoryMiB * 2 ** 20) return;
  throw new ConfigError(
    `Cannot restore ${chain.name} with ${path}: vm.memory is ${memoryMiB} MiB, ` +
      `the saved VM has ${savedBytes / 2 ** 20} MiB`,
  );
}

function streamSource(chain: Chain): RestoreSource {
  return {
    ...factsOf(chain),
    stream: exportStream(chain, WasmKernels.create(), false),
    release: () => {},
  };
}

function instantSource(chain: Chain, images: string): RestoreSource {
  let image: RamImage | undefined = takeRamImage(chain, images);
  if (image === undefined) {
    progress(`making the RAM image of ${chain.name} in ${images}`);
    prepareRamImage(chain, images);
    image = takeRamImage(chain, images);
  }
  if (image === undefined) {
    throw new ConfigError(`Cannot use ${images} for RAM images: what was written is not there`);
  }
  const { path, stream, release } = image;
  return { ...factsOf(chain), memoryPath: path, stream: [stream], release };
}

function factsOf({ name, metadata }: Chain) {
  return { name, epoch: metadata.epoch, machine: metadata.machine };
}
