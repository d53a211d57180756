/**
 * A guest that nothing protects.
 *
 * @module
 */

import { startVm } from "../../engine/host/start_vm.ts";
import type { BenchGuest } from "./guest.ts";
import { GUEST, type Hosts } from "./hosts.ts";
import { inside } from "./native_pair.ts";
import { freshDirectory } from "./rig.ts";

/** Start a plain QEMU on host A. */
export async function startAlone(
  guest: BenchGuest,
  hosts: Hosts,
): Promise<{ close(): Promise<void> }> {
  const { rig } = guest;
  const directory = await freshDirectory(rig);
  const nic = [`netdev = "${GUEST.netdev}"`];
  const vm = await startVm({
    config: guest.config({ side: "primary", nic }, directory),
    qemu: inside(rig.qemu, hosts.a.prefix),
    directory,
    incoming: false,
    report: () => {},
  });
  await hosts.plug(hosts.a);
  return { close: () => vm.stop() };
}
