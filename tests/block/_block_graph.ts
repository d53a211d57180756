/**
 * A QEMU monitor that knows of block nodes what the engine relies on, and refuses what a real one would.
 *
 * @module
 */

import type { BlockMonitor } from "../../engine/block/monitor.ts";
import type { QmpEventName, QmpEventOf } from "../../engine/qmp/mod.ts";

type Args = Readonly<Record<string, unknown>>;

interface Node {
  readonly driver: string;
  readonly sizeBytes: number;
  /** Child to node. */
  readonly children: Map<string, string>;
}

/** A VM with one disk, on node `disk0` under device `disk0-device`. */
export class BlockGraph implements BlockMonitor {
  readonly nodes = new Map<string, Node>();
  /** Commands and their arguments, in order. */
  readonly commands: { readonly name: string; readonly args: Args }[] = [];
  drive = "disk0";
  running = true;
  /** Bytes of the disk that the next NBD node is connected to. */
  replicaBytes = 1024;
  exports = new Set<string>();
  hasServer = false;
  job: { readonly device: string; readonly ready: boolean } | undefined;
  /** What the next job ends with. */
  jobError: string | undefined;
  bitmaps = new Map<string, number>();
  /** The command with this number fails. */
  failAt = -1;
  readonly #listeners: ((name: string, event: unknown) => void)[] = [];

  constructor() {
    this.nodes.set("disk0", { driver: "raw", sizeBytes: 1024, children: new Map() });
  }

  // deno-lint-ignore require-await
  async executeRaw(name: string, args: Args = {}): Promise<unknown> {
    if (this.commands.length === this.failAt) {
      this.failAt = -1;
      this.commands.push({ name: `${name} failed`, args });
      throw new Error("it is not to be");
    }
    this.commands.push({ name, args });
    return this.#do(name, args);
  }

  waitFor<Name extends QmpEventName>(
    name: Name,
    predicate: (event: QmpEventOf<Name>) => boolean,
  ): Promise<QmpEventOf<Name>> {
    return new Promise((resolve) =>
      this.#listeners.push((found, event) => {
        if (found === name && predicate(event as QmpEventOf<Name>)) {
          resolve(event as QmpEventOf<Name>);
        }
      })
    );
  }

  /** Names of the commands so far, those that only ask left out. */
  get done(): string[] {
    return this.commands.map(({ name }) => name).filter((name) => !name.startsWith("query-"));
  }

  #do(name: string, args: Args): unknown {
    const text = (key: string) => String(args[key]);
    switch (name) {
      case "query-status":
        return { running: this.running, status: this.running ? "running" : "paused" };
      case "stop":
      case "cont":
        this.running = name === "cont";
        return {};
      case "query-named-block-nodes":
        return [...this.nodes].map(([node, { driver, sizeBytes, children }]) => ({
          "node-name": node,
          drv: driver,
          image: { "virtual-size": sizeBytes, "actual-size": 100 },
          children: [...children].map(([child, node]) => ({ child, "node-name": node })),
          "dirty-bitmaps": [...this.bitmaps].map(([name, count]) => ({ name, count })),
        }));
      case "qom-set":
        if (this.running && this.drive !== text("value")) throw new Error("the VM runs");
        if (!this.nodes.has(text("value"))) throw new Error("no such node");
        this.drive = text("value");
        return {};
      case "blockdev-add":
        return this.#add(args);
      case "blockdev-del":
        return this.#remove(text("node-name"));
      case "x-blockdev-change":
        return this.#change(args);
      case "nbd-server-start":
        if (this.hasServer) throw new Error("NBD server already running");
        this.hasServer = true;
        return {};
      case "nbd-server-stop":
        this.hasServer = false;
        this.exports.clear();
        return {};
      case "block-export-add":
        if (!this.nodes.has(text("node-name"))) throw new Error("no such node");
        this.exports.add(text("id"));
        return {};
      case "block-export-del":
        if (!this.exports.delete(text("id"))) throw new Error("no such export");
        return {};
      case "blockdev-mirror":
        this.job = { device: text("job-id"), ready: true };
        return {};
      case "blockdev-backup":
        this.job = { device: text("job-id"), ready: false };
        if (this.jobError === undefined) this.bitmaps.set(text("bitmap"), 0);
        this.#end("BLOCK_JOB_COMPLETED");
        return {};
      case "query-block-jobs":
        return this.job === undefined ? [] : [{ ...this.job, offset: 10, len: 20 }];
      case "block-job-change":
        return {};
      case "block-job-cancel":
        if (this.job === undefined) throw new Error("no such job");
        this.#end(args["force"] === true ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED");
        return {};
      case "block-dirty-bitmap-add":
        this.bitmaps.set(text("name"), 0);
        return {};
      case "block-dirty-bitmap-remove":
        if (!this.bitmaps.delete(text("name"))) throw new Error("no such bitmap");
        return {};
    }
    throw new Error(`the command ${name} has not been found`);
  }

  #add(options: Args): unknown {
    const name = String(options["node-name"]);
    const driver = String(options["driver"]);
    if (this.nodes.has(name)) throw new Error("Duplicate nodes");
    const { backing, file, children: list } = options;
    const below = [backing, file, ...Array.isArray(list) ? list : []]
      .filter((node): node is string => typeof node === "string");
    for (const node of below) {
      if (!this.nodes.has(node)) throw new Error("no such node");
      if (node === this.drive) throw new Error("Conflicts with use by device");
    }
    const children = new Map(below.map((node, index) => [`children.${index}`, node]));
    const first = this.nodes.get(below[0] ?? "");
    const sizeBytes = first?.sizeBytes ?? Number(options["size"] ?? this.replicaBytes);
    this.nodes.set(name, { driver, sizeBytes, children });
    return {};
  }

  #remove(name: string): unknown {
    const isUsed = this.drive === name ||
      [...this.nodes.values()].some(({ children }) => [...children.values()].includes(name));
    if (isUsed) throw new Error(`Node ${name} is in use`);
    if (!this.nodes.delete(name)) throw new Error("no such node");
    return {};
  }

  #change({ parent, child, node }: Args): unknown {
    const { children } = this.nodes.get(String(parent))!;
    if (node !== undefined) children.set(`children.${children.size}`, String(node));
    else if (!children.delete(String(child))) throw new Error("no such child");
    return {};
  }

  #end(event: "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED"): void {
    const error = this.jobError === undefined ? {} : { error: this.jobError };
    const data = { device: this.job!.device, ...error };
    this.job = undefined;
    for (const listener of this.#listeners) listener(event, { event, data });
  }
}
