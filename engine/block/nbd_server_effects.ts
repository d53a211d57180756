/**
 * What an NBD server offers, and what it wants done.
 *
 * @module
 */

import type { DiskWrite } from "./disk_log.ts";
import type { NbdExportDescription } from "./nbd_handshake.ts";

/** What the server wants done, in this order. */
export type NbdServerEffect =
  | { readonly type: "send"; readonly bytes: Uint8Array }
  /** Into the log of the running epoch; zeros where it has no bytes. */
  | { readonly type: "log"; readonly write: DiskWrite }
  /** Then call `NbdServer.readDone`. */
  | {
    readonly type: "read";
    readonly handle: bigint;
    readonly offset: number;
    readonly length: number;
  }
  /** The log of the running epoch is that of this checkpoint; it must survive this process now. */
  | { readonly type: "seal"; readonly epoch: number }
  /** What the logs up to this checkpoint say becomes the disk's. */
  | { readonly type: "apply"; readonly epoch: number }
  /** Forget all logs. */
  | { readonly type: "drop" }
  | { readonly type: "close" };

/** What a server is to offer. */
export interface NbdServerOptions extends NbdExportDescription {
  /** Bytes of writes that are held before it is full. */
  readonly bytesMax?: number;
}
