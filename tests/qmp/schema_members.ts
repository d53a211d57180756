/**
 * The members of every command's arguments and answer and of every event's data, as values: what the
 * types promise, for comparison with what a real QEMU says of itself (`query-qmp-schema`).
 *
 * The compiler keeps this complete: a member that is missing here, or not in the type, is an error.
 *
 * @module
 */

import type {
  QmpArguments,
  QmpCommandName,
  QmpEventName,
  QmpEvents,
  QmpReturns,
} from "../../engine/qmp/mod.ts";

/** The names of the members of `T`, of its elements if it is an array; those of an index excepted. */
type Members<T> = T extends readonly (infer Element)[] ? Members<Element>
  : { readonly [Name in keyof T as string extends Name ? never : Name]-?: 1 };

type CommandMembers = {
  readonly [Name in QmpCommandName]: readonly [
    arguments: Members<QmpArguments<Name>>,
    returns: Members<QmpReturns<Name>>,
  ];
};

const PARAMETERS = {
  "max-bandwidth": 1,
  "downtime-limit": 1,
  "x-checkpoint-delay": 1,
  "announce-initial": 1,
  "announce-max": 1,
  "announce-rounds": 1,
  "announce-step": 1,
  "xbzrle-cache-size": 1,
  "multifd-channels": 1,
} as const;

const MIGRATION = {
  status: 1,
  ram: 1,
  "total-time": 1,
  "expected-downtime": 1,
  downtime: 1,
  "setup-time": 1,
  "error-desc": 1,
  "blocked-reasons": 1,
} as const;

const MACHINE = {
  name: 1,
  alias: 1,
  "is-default": 1,
  "cpu-max": 1,
  deprecated: 1,
  "default-cpu-type": 1,
  "default-ram-id": 1,
} as const;

const BLOCK = {
  device: 1,
  qdev: 1,
  removable: 1,
  locked: 1,
  inserted: 1,
  "io-status": 1,
} as const;

const NODE = {
  file: 1,
  "node-name": 1,
  ro: 1,
  drv: 1,
  backing_file: 1,
  image: 1,
  children: 1,
} as const;

const MIRROR = {
  "job-id": 1,
  device: 1,
  target: 1,
  sync: 1,
  speed: 1,
  "copy-mode": 1,
  "on-target-error": 1,
  "auto-finalize": 1,
  "auto-dismiss": 1,
} as const;

const BLOCK_JOB = {
  type: 1,
  device: 1,
  len: 1,
  offset: 1,
  speed: 1,
  busy: 1,
  paused: 1,
  ready: 1,
  status: 1,
  error: 1,
} as const;

const JOB = {
  id: 1,
  type: 1,
  status: 1,
  "current-progress": 1,
  "total-progress": 1,
  error: 1,
} as const;

const PROGRESS = { type: 1, device: 1, len: 1, offset: 1, speed: 1 } as const;

/** Command name to the members of what it takes and of what it returns. */
export const COMMAND_MEMBERS: CommandMembers = {
  qmp_capabilities: [{ enable: 1 }, {}],
  "query-version": [{}, { qemu: 1, package: 1 }],
  quit: [{}, {}],
  "query-status": [{}, { running: 1, status: 1 }],
  "query-name": [{}, { name: 1 }],
  "query-machines": [{}, MACHINE],
  "query-kvm": [{}, { enabled: 1, present: 1 }],
  "query-accelerators": [{}, { enabled: 1, present: 1 }],
  "query-memory-size-summary": [{}, { "base-memory": 1, "plugged-memory": 1 }],
  stop: [{}, {}],
  cont: [{}, {}],
  system_reset: [{}, {}],
  system_powerdown: [{}, {}],
  getfd: [{ fdname: 1 }, {}],
  "query-migrate": [{}, MIGRATION],
  "query-migrate-capabilities": [{}, { capability: 1, state: 1 }],
  "migrate-set-capabilities": [{ capabilities: 1 }, {}],
  "query-migrate-parameters": [{}, PARAMETERS],
  "migrate-set-parameters": [PARAMETERS, {}],
  migrate: [{ uri: 1, channels: 1, resume: 1 }, {}],
  "migrate-incoming": [{ uri: 1, channels: 1, "exit-on-error": 1 }, {}],
  migrate_cancel: [{}, {}],
  "migrate-continue": [{ state: 1 }, {}],
  "x-colo-lost-heartbeat": [{}, {}],
  "query-colo-status": [{}, { mode: 1, "last-mode": 1, reason: 1 }],
  "query-yank": [{}, { type: 1 }],
  "announce-self": [{ initial: 1, max: 1, rounds: 1, step: 1, interfaces: 1, id: 1 }, {}],
  "query-chardev": [{}, { label: 1, filename: 1, "frontend-open": 1 }],
  "chardev-add": [{ id: 1, backend: 1 }, { pty: 1 }],
  "chardev-remove": [{ id: 1 }, {}],
  "object-add": [{ "qom-type": 1, id: 1 }, {}],
  "object-del": [{ id: 1 }, {}],
  "qom-list": [{ path: 1 }, { name: 1, type: 1, description: 1 }],
  "qom-get": [{ path: 1, property: 1 }, {}],
  "qom-set": [{ path: 1, property: 1, value: 1 }, {}],
  "query-block": [{}, BLOCK],
  "query-named-block-nodes": [{ flat: 1 }, NODE],
  "blockdev-add": [{ driver: 1, "node-name": 1 }, {}],
  "blockdev-del": [{ "node-name": 1 }, {}],
  "x-blockdev-change": [{ parent: 1, child: 1, node: 1 }, {}],
  "blockdev-mirror": [MIRROR, {}],
  "query-block-jobs": [{}, BLOCK_JOB],
  "block-job-cancel": [{ device: 1, force: 1 }, {}],
  "query-jobs": [{}, JOB],
  "job-cancel": [{ id: 1 }, {}],
  "job-dismiss": [{ id: 1 }, {}],
  "nbd-server-start": [{ addr: 1, "tls-creds": 1, "tls-authz": 1, "max-connections": 1 }, {}],
  "nbd-server-stop": [{}, {}],
  "block-export-add": [{ type: 1, id: 1, "node-name": 1, name: 1, writable: 1 }, {}],
  "block-export-del": [{ id: 1, mode: 1 }, {}],
};

/** Event name to the members of its data. */
export const EVENT_MEMBERS: { readonly [Name in QmpEventName]: Members<QmpEvents[Name]> } = {
  STOP: {},
  RESUME: {},
  MIGRATION: { status: 1 },
  MIGRATION_PASS: { pass: 1 },
  COLO_EXIT: { mode: 1, reason: 1 },
  SHUTDOWN: { guest: 1, reason: 1 },
  RESET: { guest: 1, reason: 1 },
  POWERDOWN: {},
  SUSPEND: {},
  WAKEUP: {},
  GUEST_PANICKED: { action: 1, info: 1 },
  BLOCK_JOB_READY: PROGRESS,
  BLOCK_JOB_COMPLETED: { ...PROGRESS, error: 1 },
  BLOCK_JOB_CANCELLED: PROGRESS,
  BLOCK_JOB_ERROR: { device: 1, operation: 1, action: 1 },
  BLOCK_IO_ERROR: {
    "qom-path": 1,
    device: 1,
    "node-name": 1,
    operation: 1,
    action: 1,
    nospace: 1,
    reason: 1,
  },
  QUORUM_REPORT_BAD: {
    type: 1,
    error: 1,
    "node-name": 1,
    "sector-num": 1,
    "sectors-count": 1,
  },
  QUORUM_FAILURE: { reference: 1, "sector-num": 1, "sectors-count": 1 },
  JOB_STATUS_CHANGE: { id: 1, status: 1 },
  BLOCK_EXPORT_DELETED: { id: 1 },
};
