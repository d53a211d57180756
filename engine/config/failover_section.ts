/**
 * `[failover]` of `vm.toml`: how the loss of the other host is noticed, and who decides what then.
 *
 * @module
 */

import type { Table } from "./table.ts";

/** Who decides which host runs the VM when they cannot hear each other. */
export type ArbiterChoice = "manual" | "etcd";

/** How the loss of the other host is noticed, and who decides what then. */
export interface FailoverSection {
  readonly arbiter: ArbiterChoice;
  /** Of etcd. */
  readonly endpoints: readonly string[];
  /** How long a host may run the VM alone without asking the arbiter. */
  readonly leaseMs: number;
  /** Between two heartbeats. */
  readonly heartbeatMs: number;
  /** So much silence is a loss. */
  readonly timeoutMs: number;
  /** The command that switches the other host off, and what it is told; none, as when left out. */
  readonly fence?: FenceSection | undefined;
}

/** A fence agent. */
export interface FenceSection {
  readonly command: readonly string[];
  /** What the fence device calls the other host. */
  readonly plug: string;
  /** Further lines `key=value`. */
  readonly options: Readonly<Record<string, string>>;
  /** How long a standby lets the primary have it switched off first; longer than the command takes. */
  readonly delayMs: number;
}

export const FAILOVER_KEYS = [
  "arbiter",
  "endpoints",
  "lease",
  "heartbeat",
  "timeout",
  "fence",
  "fencePlug",
  "fenceOptions",
  "fenceDelay",
] as const;

const DEFAULTS = { leaseMs: 5000, heartbeatMs: 100, timeoutMs: 500, fenceDelayMs: 5000 } as const;

/** Beats that may be late or lost before their silence counts. */
const TIMEOUT_BEATS_MIN = 4;

/** @throws {ConfigError} when it makes no sense */
export function readFailover(table: Table<typeof FAILOVER_KEYS[number]>): FailoverSection {
  const arbiter = table.choice("arbiter", ["manual", "etcd"]) ?? "manual";
  const endpoints = table.texts("endpoints");
  if (arbiter === "etcd" && endpoints.length === 0) {
    table.fail("endpoints", 'is missing: say where etcd listens, such as ["http://10.0.9.9:2379"]');
  }
  for (const endpoint of endpoints) {
    if (!URL.canParse(endpoint) || !/^https?:/.test(endpoint)) {
      table.fail(
        "endpoints",
        `has ${JSON.stringify(endpoint)}, which is no URL such as "http://10.0.9.9:2379"`,
      );
    }
  }
  const heartbeatMs = table.integer("heartbeat", 10, 10_000) ?? DEFAULTS.heartbeatMs;
  const timeoutMs = table.integer("timeout", 40, 60_000) ??
    Math.max(DEFAULTS.timeoutMs, TIMEOUT_BEATS_MIN * heartbeatMs);
  if (timeoutMs < TIMEOUT_BEATS_MIN * heartbeatMs) {
    table.fail(
      "timeout",
      `is ${timeoutMs}, but must be at least ${TIMEOUT_BEATS_MIN} times failover.heartbeat, which is ` +
        `${heartbeatMs}`,
    );
  }
  const fence = readFence(table);
  return {
    arbiter,
    endpoints,
    leaseMs: table.integer("lease", 2000, 600_000) ?? DEFAULTS.leaseMs,
    heartbeatMs,
    timeoutMs,
    ...(fence === undefined ? {} : { fence }),
  };
}

function readFence(table: Table<typeof FAILOVER_KEYS[number]>): FenceSection | undefined {
  const command = table.texts("fence");
  const plug = table.text("fencePlug");
  const lines = table.texts("fenceOptions");
  const delayMs = table.integer("fenceDelay", 0, 600_000);
  if (command.length === 0) {
    if (plug !== undefined) table.fail("fencePlug", "needs failover.fence as well");
    if (lines.length > 0) table.fail("fenceOptions", "needs failover.fence as well");
    if (delayMs !== undefined) table.fail("fenceDelay", "needs failover.fence as well");
    return undefined;
  }
  const options = lines.map((line): [string, string] => {
    const at = line.indexOf("=");
    if (at < 1) table.fail("fenceOptions", `has ${JSON.stringify(line)}, which is no "key=value"`);
    return [line.slice(0, at), line.slice(at + 1)];
  });
  return {
    command,
    plug: table.required("fencePlug", plug, ": what the fence device calls the other host"),
    options: Object.fromEntries(options),
    delayMs: delayMs ?? DEFAULTS.fenceDelayMs,
  };
}

/** As {@linkcode readFailover} takes it; undefined where all is as if it were left out. */
export function formatFailover(section: FailoverSection): object | undefined {
  const { arbiter, endpoints, leaseMs, heartbeatMs, timeoutMs, fence } = section;
  const isDefault = arbiter === "manual" && endpoints.length === 0 && fence === undefined &&
    leaseMs === DEFAULTS.leaseMs && heartbeatMs === DEFAULTS.heartbeatMs &&
    timeoutMs === DEFAULTS.timeoutMs;
  if (isDefault) return undefined;
  return {
    arbiter,
    ...(endpoints.length === 0 ? {} : { endpoints }),
    lease: leaseMs,
    heartbeat: heartbeatMs,
    timeout: timeoutMs,
    ...(fence === undefined ? {} : {
      fence: fence.command,
      fencePlug: fence.plug,
      fenceOptions: Object.entries(fence.options).map(([key, value]) => `${key}=${value}`),
      fenceDelay: fence.delayMs,
    }),
  };
}
