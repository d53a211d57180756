/**
 * What is said to etcd 3 and back, as the JSON of its gRPC gateway. Pure.
 *
 * Keys and values are base64, 64-bit numbers are decimal texts, and a field whose value is its type's
 * zero is left out. Ids and revisions are kept as texts: they are compared, and never counted with.
 *
 * Sources: etcd `api/etcdserverpb/rpc.proto`, `api/mvccpb/kv.proto`, and the page "Why gRPC gateway" of
 * its documentation.
 *
 * @module
 */

import { ArbiterError } from "../errors.ts";

/** Status code of gRPC for a lease that has ended. */
export const NOT_FOUND = 5;

/** Status codes of gRPC that another member of the cluster may not answer with. */
const TRANSIENT_CODES: readonly number[] = [
  4, // deadline exceeded
  8, // resource exhausted: too many requests
  13, // internal
  14, // unavailable: no leader, the leader has changed, the request timed out
];

/** A revision that no key has: the one of keys that do not exist. */
export const NEVER = "0";

/** A key and what it holds. */
export interface EtcdEntry {
  readonly key: string;
  readonly value: string;
  /** Revision of the last change: a decimal text */
  readonly modRevision: string;
}

/** A condition: the key was last changed with this revision, or holds this value. */
export type EtcdCondition =
  | { readonly key: string; readonly modRevision: string }
  | { readonly key: string; readonly value: string };

/** A value to be stored, which goes with the lease where there is one. */
export interface EtcdPut {
  readonly key: string;
  readonly value: string;
  readonly lease?: string | undefined;
}

/** Store all where every condition holds, and read the keys where one does not. */
export interface EtcdTransaction {
  readonly conditions: readonly EtcdCondition[];
  readonly puts: readonly EtcdPut[];
  readonly otherwiseRead: readonly string[];
}

/** What became of a transaction. */
export type EtcdOutcome =
  /** @param revision Of all that was stored */
  | { readonly succeeded: true; readonly revision: string }
  /** @param entries Those of the keys to be read that exist */
  | { readonly succeeded: false; readonly entries: readonly EtcdEntry[] };

/** A lease that was made or kept. */
export interface EtcdLease {
  readonly id: string;
  /** Seconds; 0 where it has ended */
  readonly ttlS: number;
}

type Json = Readonly<Record<string, unknown>>;

/** The body of `kv/range`. */
export function rangeRequest(key: string): Json {
  return { key: toBase64(key) };
}

/** The body of `kv/range` for all keys that begin so. */
export function prefixRequest(prefix: string, countMax: number): Json {
  const end = prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
  return { key: toBase64(prefix), range_end: toBase64(end), limit: String(countMax) };
}

/** The body of `kv/put`. */
export function putRequest({ key, value, lease }: EtcdPut): Json {
  return {
    key: toBase64(key),
    value: toBase64(value),
    ...(lease === undefined ? {} : { lease }),
  };
}

/** The body of `kv/txn`. */
export function txnRequest({ conditions, puts, otherwiseRead }: EtcdTransaction): Json {
  return {
    compare: conditions.map((condition) => ({
      key: toBase64(condition.key),
      result: "EQUAL",
      ...("value" in condition
        ? { target: "VALUE", value: toBase64(condition.value) }
        : { target: "MOD", mod_revision: condition.modRevision }),
    })),
    success: puts.map((put) => ({ request_put: putRequest(put) })),
    failure: otherwiseRead.map((key) => ({ request_range: rangeRequest(key) })),
  };
}

/** @throws {ArbiterError} when it is no answer to `kv/range` */
export function readRange(answer: unknown): readonly EtcdEntry[] {
  const { kvs = [] } = object(answer);
  return list(kvs).map((kv) => {
    const { key, value = "", mod_revision } = object(kv);
    return { key: fromBase64(key), value: fromBase64(value), modRevision: digits(mod_revision) };
  });
}

/** @throws {ArbiterError} when it is no answer to `kv/txn` */
export function readTxn(answer: unknown): EtcdOutcome {
  const { succeeded = false, header, responses = [] } = object(answer);
  if (succeeded === true) return { succeeded, revision: digits(object(header).revision) };
  if (succeeded !== false) throw unusable("succeeded is neither true nor false");
  const entries = list(responses).flatMap((response) => readRange(object(response).response_range));
  return { succeeded, entries };
}

/** @throws {ArbiterError} when it is no answer to `lease/grant` */
export function readGrant(answer: unknown): EtcdLease {
  const { ID, TTL } = object(answer);
  return { id: digits(ID), ttlS: Number(digits(TTL)) };
}

/** @throws {ArbiterError} when it is no answer to `lease/keepalive` */
export function readKeepAlive(answer: unknown): EtcdLease {
  const { ID, TTL = "0" } = object(object(answer).result);
  return { id: digits(ID), ttlS: Number(digits(TTL)) };
}

/** What etcd refuses with, or nothing where it does not. */
export interface EtcdRefusal {
  readonly code: number;
  readonly message: string;
  /** Whether another member may know better. */
  readonly transient: boolean;
}

/** Whether an answer says that something went wrong: of `lease/keepalive` within its stream. */
export function readRefusal(answer: unknown): EtcdRefusal | undefined {
  if (typeof answer !== "object" || answer === null || !("error" in answer)) return undefined;
  const inner = typeof answer.error === "object" ? answer.error : answer;
  const { code, grpc_code, message, error } = object(inner);
  const status = typeof grpc_code === "number" ? grpc_code : code;
  if (typeof status !== "number") return undefined;
  const text = typeof message === "string" ? message : String(error);
  return { code: status, message: text, transient: TRANSIENT_CODES.includes(status) };
}

function object(value: unknown): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw unusable("an object is missing");
  }
  return value as Json;
}

function list(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw unusable("a list is missing");
  return value;
}

function digits(value: unknown): string {
  if (typeof value !== "string" || !/^\d{1,19}$/.test(value)) throw unusable("a number is missing");
  return value;
}

function toBase64(text: string): string {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

function fromBase64(value: unknown): string {
  try {
    const bytes = Uint8Array.from(atob(String(value)), (char) => char.charCodeAt(0));
    return new TextDecoder().decode(bytes);
  } catch {
    throw unusable("a key or a value is no base64");
  }
}

function unusable(detail: string): ArbiterError {
  return new ArbiterError(`Cannot use the answer of etcd: ${detail}; is that an etcd 3.4 or newer`);
}
