/**
 * The QEMU machine protocol: a client, and the commands and events the engine uses as types.
 *
 * @module
 */

export * from "./client.ts";
export { encodeCommand, QmpDecoder, type QmpGreeting, type QmpMessage } from "./codec.ts";
export * from "./commands.ts";
export * from "./event_stream.ts";
export * from "./events.ts";
export * from "./schema.ts";
export type { QmpAddress, QmpConnection } from "./transport.ts";
