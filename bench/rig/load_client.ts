/**
 * A client of the demo guest, as a process: `deno run -A load_client.ts JSON`, the JSON being a
 * {@linkcode LoadOptions}. Prints a line `{"event":"connected"}` when every connection has had an
 * answer, and in the end `{"event":"done","result":...}`, at the latest after `durationMs`; SIGTERM is
 * the end as well.
 *
 * @module
 */

import type { ServerAddress } from "./client_connection.ts";
import { ClosedLoop, type LoadResult, type LoopOptions } from "./closed_loop.ts";
import { CountSession, GuestDialer, pageContent, PageSession } from "./sessions.ts";
import { RandomPageSession, type Session } from "./sessions.ts";
import { SynWatch } from "./syn_watch.ts";

/** What is asked for. */
export type LoadKind =
  /** `/page/N`, on a connection of its own each time if wanted. */
  | { readonly kind: "page"; readonly sizeBytes: number; readonly once?: boolean | undefined }
  | { readonly kind: "random"; readonly sizeBytes: number; readonly once?: boolean | undefined }
  | { readonly kind: "count" }
  /** Counting on connections that the guest opens; `own` is where this client is reached. */
  | { readonly kind: "dial"; readonly own: ServerAddress }
  /** Connections that the guest opens, measured until one is accepted; with one who asks for them. */
  | { readonly kind: "connect"; readonly own: ServerAddress }
  /** The same, measured until the guest's first packet is here. */
  | { readonly kind: "syn"; readonly own: ServerAddress };

/** What a client is to do. */
export interface LoadOptions extends LoopOptions {
  readonly server: ServerAddress;
  readonly load: LoadKind;
}

/** A line that a client prints. */
export type LoadEvent =
  | { readonly event: "connected" }
  | { readonly event: "done"; readonly result: LoadResult };

function opener({ server, load }: LoadOptions): () => Promise<Session> {
  switch (load.kind) {
    case "page": {
      const content = pageContent(load.sizeBytes);
      return perhapsOnce(load.once, () => PageSession.open(server, content));
    }
    case "random":
      return perhapsOnce(load.once, () => RandomPageSession.open(server, load.sizeBytes));
    case "count":
      return () => CountSession.open(server);
    case "dial": {
      const dialer = new GuestDialer(server, load.own);
      return () => dialer.dial();
    }
    case "connect": {
      const dialer = new GuestDialer(server, load.own);
      return () => dialer.connecting();
    }
    case "syn": {
      const dialer = new GuestDialer(server, load.own);
      const syns = new SynWatch(dialer.own.port);
      return () => dialer.connecting(syns);
    }
  }
}

/** One connection a request, which is part of what is measured. */
function perhapsOnce(
  once: boolean | undefined,
  open: () => Promise<Session>,
): () => Promise<Session> {
  if (!once) return open;
  return () => {
    let session: Session | undefined;
    const next = async () => {
      session = await open();
      try {
        return await session.next();
      } finally {
        session.close();
      }
    };
    return Promise.resolve({ next, close: () => session?.close() });
  };
}

function print(event: LoadEvent): void {
  console.log(JSON.stringify(event));
}

if (import.meta.main) {
  const options = JSON.parse(Deno.args[0] ?? "") as LoadOptions;
  const loop = new ClosedLoop(options, opener(options));
  Deno.addSignalListener("SIGTERM", () => loop.stop());
  loop.connected.then(() => print({ event: "connected" }));
  print({ event: "done", result: await loop.run() });
  // Whatever is still open is of no use any more.
  Deno.exit();
}
