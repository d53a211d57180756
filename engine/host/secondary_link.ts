/**
 * The link to one primary, as long as it lasts: what is read from each of its connections, and whether
 * the primary is heard of.
 *
 * @module
 */

import { LinkError, NbdError, WireError } from "../errors.ts";
import type { DetectorOptions } from "../failover/detector.ts";
import {
  closeLink,
  type Link,
  LINK_ROLES,
  type LinkConnection,
  type Message,
} from "../link/mod.ts";
import type { DiskCopyName } from "./disk_copy.ts";
import { Heartbeat } from "./heartbeat.ts";
import type { ReplicaSide } from "./replica_side.ts";

/** The secondary, as far as it is needed here. */
export interface LinkedSecondary {
  readonly side: ReplicaSide;
  readonly diskCopy: DiskCopyName;
  readonly heartbeat: Required<DetectorOptions>;
  /** Whether pages go into the replica, which may have to be waited for. */
  takesPages(): boolean;
  /** What is neither about its disks nor a heartbeat. */
  take(message: Message): void;
}

/** Serves one primary. */
export class SecondaryLink {
  readonly #link: Link;
  readonly #secondary: LinkedSecondary;
  readonly #heartbeat: Heartbeat;
  #reason: string | undefined;
  /** A seed has been committed on this link. */
  #isSeeded = false;

  constructor(link: Link, secondary: LinkedSecondary) {
    this.#link = link;
    this.#secondary = secondary;
    const { heartbeat } = secondary;
    this.#heartbeat = new Heartbeat(link.control, heartbeat, {
      lost: () => {
        this.#reason ??= `the primary's engine has been silent for ${heartbeat.timeoutMs} ms`;
        closeLink(link);
      },
    });
  }

  /** Read until the link is gone; returns why it is. */
  async serve(): Promise<string> {
    const { diskCopy } = this.#secondary;
    // A broken link is noticed where it is read.
    this.#link.disks.send({ type: "diskCopy", copy: diskCopy.load() }).catch(() => {});
    await Promise.all(LINK_ROLES.map((role) => {
      const isReadElsewhere = role === "packets" && this.#secondary.side.frames === undefined;
      return isReadElsewhere ? this.#awaitEnd(this.#link[role]) : this.#read(this.#link[role]);
    }));
    this.stop();
    return this.#reason ?? "the link to the primary broke";
  }

  /** Expect no heartbeats any more. */
  stop(): void {
    this.#heartbeat.stop();
  }

  async #read(connection: LinkConnection): Promise<void> {
    try {
      for await (const message of connection.receive()) {
        await this.#received(message);
        if (connection === this.#link.bulk && this.#secondary.takesPages()) {
          await this.#secondary.side.room();
        }
      }
    } catch (error) {
      if (!(error instanceof LinkError || error instanceof WireError)) throw error;
      // The connection that broke first knows why; the others were closed for it.
      this.#reason ??= error.message;
    } finally {
      closeLink(this.#link);
    }
  }

  async #awaitEnd(connection: LinkConnection): Promise<void> {
    const { message } = await connection.closed;
    // Whoever closed it for a reason of his own has said so.
    this.#reason ??= message;
    closeLink(this.#link);
  }

  async #received(message: Message): Promise<void> {
    const { side, diskCopy } = this.#secondary;
    switch (message.type) {
      case "heartbeat":
        return this.#heartbeat.heard();
      case "diskCopy":
        return diskCopy.store(message.copy);
      case "nbd":
        return await this.#written(message);
      case "seedBegin":
        this.#isSeeded = false;
        break;
      case "commit":
        // From a seed alone nobody takes over, and its disks have gone on.
        if (this.#isSeeded) await side.arrived(message.epoch);
        this.#isSeeded = true;
        break;
    }
    this.#secondary.take(message);
  }

  async #written(message: Extract<Message, { type: "nbd" }>): Promise<void> {
    try {
      await this.#secondary.side.written(message);
    } catch (error) {
      if (!(error instanceof NbdError)) throw error;
      throw new WireError(error.message, error.offset);
    }
  }
}
