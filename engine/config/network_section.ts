/**
 * `[network]` of `vm.toml`: how what the VM sends is compared.
 *
 * @module
 */

import { messageOf } from "../errors.ts";
import { compileFlowRules, type FlowRule } from "../proxy/flow_rules.ts";
import type { Table } from "./table.ts";

/** How what the VM sends is compared with what the secondary VM sends. */
export interface NetworkSection {
  /** How long a frame waits for the secondary's before a checkpoint is asked for. */
  readonly timeoutMs: number;
  /** Flows that are not compared. */
  readonly excluded: readonly FlowRule[];
}

export const NETWORK_KEYS = ["timeout", "exclude"] as const;

const RULE_KEYS = [
  "protocol",
  "source",
  "sourcePort",
  "destination",
  "destinationPort",
] as const;

const DEFAULT_TIMEOUT_MS = 200;

/** @throws {ConfigError} when it makes no sense */
export function readNetwork(table: Table<typeof NETWORK_KEYS[number]>): NetworkSection {
  return {
    timeoutMs: table.integer("timeout", 10, 60_000) ?? DEFAULT_TIMEOUT_MS,
    excluded: table.tables("exclude", RULE_KEYS).map(readRule),
  };
}

function readRule(table: Table<typeof RULE_KEYS[number]>): FlowRule {
  const rule = present({
    protocol: table.choice("protocol", ["tcp", "udp", "icmp"] as const),
    source: table.text("source"),
    sourcePort: table.integer("sourcePort", 1, 65535),
    destination: table.text("destination"),
    destinationPort: table.integer("destinationPort", 1, 65535),
  });
  try {
    compileFlowRules([rule]);
  } catch (error) {
    table.fail(rule.source === undefined ? "destination" : "source", `: ${messageOf(error)}`);
  }
  return rule;
}

/** As {@linkcode readNetwork} takes it; undefined where all is as if it were left out. */
export function formatNetwork({ timeoutMs, excluded }: NetworkSection): object | undefined {
  if (timeoutMs === DEFAULT_TIMEOUT_MS && excluded.length === 0) return undefined;
  return { timeout: timeoutMs, ...(excluded.length === 0 ? {} : { exclude: excluded }) };
}

function present(rule: { readonly [Key in keyof FlowRule]: FlowRule[Key] | undefined }): FlowRule {
  return Object.fromEntries(Object.entries(rule).filter(([, value]) => value !== undefined));
}
