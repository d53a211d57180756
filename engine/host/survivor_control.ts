/**
 * What can be asked of a VM that has taken over, and told to it, while nobody is known who could protect
 * it.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import type { ControlCommands } from "../control/mod.ts";
import { type LinkAddress, parseAddress } from "../link/mod.ts";
import type { FilterMonitor } from "./packet_filters.ts";

/** For the answer to reach the client, before another engine listens in this one's place. */
const ANSWER_MS = 100;

/**
 * The commands by their names.
 *
 * @param protect Has the VM protected by the standby at an address; called once at the most
 */
export function survivorCommands(
  monitor: () => FilterMonitor | undefined,
  protect: (address: LinkAddress) => void,
  { replication: { encryption } }: Pick<VmConfig, "replication">,
): ControlCommands {
  const reach = encryption === "none" ? "network" : "host";
  let isOrdered = false;
  return {
    "query-status": { arguments: {}, run: () => monitor()?.execute("query-status") },
    "colo-reprotect": {
      arguments: { address: "string" },
      run: ({ address }) => {
        const parsed = parseAddress(String(address), undefined, reach);
        if (isOrdered) return;
        isOrdered = true;
        setTimeout(() => protect(parsed), ANSWER_MS);
      },
    },
  };
}
