/**
 * The door of a host that runs the VM itself: whoever knocks as its primary, or is about to start the VM,
 * learns that it runs here.
 *
 * @module
 */

import { messageOf } from "../errors.ts";
import { acceptLinks, closeLink, type LinkAddress, listenLink } from "../link/mod.ts";
import { ENGINE_VERSION } from "../version.ts";

/**
 * Refuse whoever connects, until it is closed. The VM runs without it as well: what stands in its way is
 * said, and that is all.
 *
 * @param generation In which the VM runs here
 */
export async function refuseAll(
  address: LinkAddress,
  generation: () => number,
  notice: (text: string) => void,
): Promise<Disposable | undefined> {
  try {
    const listener = await listenLink(address);
    const refusal = () => ({ reason: "it runs the VM itself", generation: generation() });
    const refuse = async () => {
      for await (const link of acceptLinks(listener, ENGINE_VERSION, refusal)) closeLink(link);
    };
    refuse().catch((error) => notice(messageOf(error)));
    return { [Symbol.dispose]: () => listener.close() };
  } catch (error) {
    notice(messageOf(error));
    return undefined;
  }
}
