/**
 * Both sides of a pair at work: processes, sockets, clocks.
 *
 * @module
 */

export { type PrimaryEnd, PrimaryHost, type PrimaryHostOptions } from "./primary_host.ts";
export * from "./report.ts";
export { type SecondaryEnd, SecondaryHost, type SecondaryHostOptions } from "./secondary_host.ts";
