/**
 * The link between two engines: frames and messages (pure), and the sockets that carry them.
 *
 * @module
 */

export * from "./address.ts";
export * from "./link.ts";
export * from "./messages.ts";
export * from "./transport.ts";
export * from "./wire.ts";
