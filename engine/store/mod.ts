/**
 * Durable checkpoints.
 *
 * @module
 */

export { Chain, CheckpointFile, type StoredPage } from "./chain.ts";
export type { CheckpointMoment, PageSource } from "./checkpoint_writer.ts";
export { DirectoryFiles, type ReadableFile, type StoreFiles, type WritableFile } from "./files.ts";
export { type Lz4FrameOptions, Lz4FrameReader, Lz4FrameWriter } from "./lz4_frame.ts";
export type { CheckpointMetadata, ParentLink } from "./metadata.ts";
export { prepareRamImage, type RamImage, removeRamImage, takeRamImage } from "./ram_image.ts";
export { type FrozenSnapshot, Saver, type SaveResult, type SnapshotSource } from "./saver.ts";
export {
  CheckpointSave,
  CheckpointStore,
  type SavedCheckpoint,
  type SaveRequest,
  type StoredCheckpoint,
} from "./store.ts";
export { exportStream } from "./stream_export.ts";
export { Xxh32, xxh32 } from "./xxh32.ts";
