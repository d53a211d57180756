/**
 * QEMU's migration stream and COLO's messages: read, written, inspected. Pure: bytes in, events out.
 *
 * @module
 */

export * from "./format.ts";
export { formatInspection, type Inspection, StreamInspector } from "./inspect.ts";
export * from "./reader.ts";
export * from "./return_path.ts";
export { Staging, type StagingOptions } from "./staging.ts";
export * as streamWriter from "./writer.ts";
