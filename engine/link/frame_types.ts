/**
 * The kinds of frames, and their numbers on the wire. A number is never used again for another kind.
 *
 * @module
 */

/** Name and number of every kind of frame; `P` is the primary's engine, `S` the secondary's. */
export const FRAME_TYPES = {
  /** P to S, first on every connection. */
  hello: 0x01,
  /** S to P: the connection is taken. */
  welcome: 0x02,
  /** S to P: it is not, and why. */
  refuse: 0x03,
  /** Both ways on the control connection. */
  heartbeat: 0x04,
  /** Either way: an orderly end, after which nobody takes over. */
  goodbye: 0x05,

  /** P to S: a guest is about to be copied. */
  seedBegin: 0x10,
  /** P to S: RAM records of QEMU's migration stream. */
  pages: 0x11,
  /** P to S: a piece of a checkpoint's device state. */
  deviceState: 0x12,
  /** P to S: the checkpoint is complete. */
  commit: 0x13,

  /** S to P: the standby QEMU is up and waits to be seeded. */
  replicaReady: 0x20,
  /** S to P: the checkpoint is held as a whole. */
  committed: 0x21,
  /** S to P: the secondary VM runs from the checkpoint. */
  loaded: 0x22,
  /** S to P: the standby QEMU is gone. */
  replicaFailed: 0x23,

  /** P to S: the primary QEMU is dead for certain. */
  primaryLost: 0x30,
  /** S to P: the secondary VM runs on its own. */
  takenOver: 0x31,
} as const;

/** A kind of frame. */
export type FrameType = keyof typeof FRAME_TYPES;

const TYPE_BY_NUMBER: ReadonlyMap<number, FrameType> = new Map(
  (Object.keys(FRAME_TYPES) as FrameType[]).map((type) => [FRAME_TYPES[type], type]),
);

/** @returns The kind of frame with this number, if there is one */
export function frameTypeOf(number: number): FrameType | undefined {
  return TYPE_BY_NUMBER.get(number);
}
