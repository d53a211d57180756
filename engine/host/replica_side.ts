/**
 * What a secondary's host does for its replica: the QEMUs and files behind it.
 *
 * @module
 */

import type { ReplicaAnswer, ReplicaEffect } from "../checkpoint/replica.ts";
import type { VmConfig } from "../config/mod.ts";
import type { Link, Message } from "../link/mod.ts";
import type { Qemu } from "../vm/mod.ts";
import type { FilterMonitor } from "./packet_filters.ts";
import type { Reporter } from "./report.ts";
import type { RunNotebook, Vm } from "./start_vm.ts";

/** What a side has to say. */
export interface SideEvents {
  /** It can be seeded. */
  ready(): void;
  answered(answer: ReplicaAnswer): void;
  /** The QEMU that the guest's copy is, or the VM, has ended; `orderly`: as one that was shut down. */
  lost(reason: string, orderly: boolean): void;
  /** More is held than should be: have it loaded. */
  full(): void;
  /** A takeover takes long; it is waited for. */
  late(): void;
  /** It is of no further use. */
  failed(error: unknown): void;
}

/** What every side needs. */
export interface SideOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  readonly report: Reporter;
  /** Where its QEMU is written down. */
  readonly run: RunNotebook | undefined;
  readonly events: SideEvents;
}

/** One side. */
export interface ReplicaSide {
  /** The monitor of the QEMU that would take over, if there is one. */
  readonly monitor: FilterMonitor | undefined;
  /** Fulfilled when it can be seeded. */
  start(): Promise<void>;
  /** Do what the replica wants done; `loaded` is for others. */
  do(effect: Exclude<ReplicaEffect, { type: "loaded" }>): void;
  /** The VM runs, or would run, from this checkpoint. */
  loaded(epoch: number): void;
  /** Sizes of the VM's disks in bytes. */
  readonly diskSizes: readonly number[];
  /** Where frames of a VM that runs along, and answers of its disks, go to: the primary's engine, or nobody. */
  connect(link: Link | undefined): void;
  /**
   * The primary VM has received something. Left out: this side reads the packets of the link that it is
   * connected to itself.
   *
   * @throws {WireError} when it makes no sense
   */
  frames?(message: Extract<Message, { type: "frames" }>): void;
  /**
   * The primary VM has written something. Fulfilled when there is room for more.
   *
   * @throws {WireError} when it makes no sense
   * @throws {NbdError} likewise
   */
  written(message: Extract<Message, { type: "nbd" }>): Promise<void>;
  /**
   * Fulfilled when all is here that was written before this checkpoint.
   *
   * @throws {LinkError} when it will not come
   */
  arrived(epoch: number): Promise<void>;
  /** Fulfilled when there is room for more of a seed. */
  room(): Promise<void>;
  /** Throw the QEMU away that is the guest's copy, and start a fresh one. */
  restart(): void;
  /** The peer's fault or QEMU's: end it, so that another is started. */
  kill(): void;
  /**
   * Let the VM run on its own, however long that takes; returns when QEMU resumed it, in milliseconds
   * since the epoch.
   *
   * @throws when the QEMU has ended, or could not be given what it needs
   */
  takeOver(): Promise<number>;
  /** The VM has taken over, and the network finds it here: it speaks to the world from now on. */
  release(): Promise<void>;
  /** What the VM had written before it took over gets into its disks, while it runs. */
  merge(): Promise<void>;
  /** The VM has taken over, and is somebody else's to look after from now on. */
  handOver(): Vm;
  /**
   * End everything.
   *
   * @param keep Whether a checkpoint that is held, and that nobody runs, is to be found by a later start
   */
  stop(keep: boolean): Promise<void>;
}
