/**
 * A thin client of etcd 3 through its JSON gateway, with several endpoints and a deadline a request.
 *
 * An endpoint that does not answer in time is left for the next one. What was asked of it may be done
 * all the same, and then again by the next: nothing of what is said here minds that, but for a lease
 * that nobody knows of, which ends by itself.
 *
 * @module
 */

import { ArbiterError, ConfigError, messageOf } from "../errors.ts";
import { ETCD_ANSWER_BYTES_MAX } from "../limits.ts";
import {
  type EtcdEntry,
  type EtcdLease,
  type EtcdOutcome,
  type EtcdPut,
  type EtcdTransaction,
  prefixRequest,
  putRequest,
  rangeRequest,
  readGrant,
  readKeepAlive,
  readRange,
  readRefusal,
  readTxn,
  txnRequest,
} from "./etcd_wire.ts";

/** How a request is made: `fetch`, or one of its kind with certificates, or a test's. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** Where etcd is. */
export interface EtcdClientOptions {
  /** URLs of the members, such as `http://10.0.0.1:2379` */
  readonly endpoints: readonly string[];
  /** How long one endpoint has for an answer; 1000 ms if absent. */
  readonly timeoutMs?: number | undefined;
  readonly fetch?: Fetch | undefined;
}

/** A member on a disk of its own answers in milliseconds; one that is busy writing, in hundreds. */
export const ETCD_TIMEOUT_MS = 1000;

/** The requests that an arbiter has. Each throws {@linkcode ArbiterError}. */
export class EtcdClient {
  readonly #endpoints: readonly string[];
  readonly #timeoutMs: number;
  readonly #fetch: Fetch;
  /** The endpoint that answered last. */
  #preferred = 0;

  /** @throws {ConfigError} when there is no endpoint, or one is no URL */
  constructor(options: EtcdClientOptions) {
    if (options.endpoints.length === 0) {
      throw new ConfigError(
        "Cannot use etcd: no endpoint is given; name one such as http://127.0.0.1:2379",
      );
    }
    this.#endpoints = options.endpoints.map(checkEndpoint);
    this.#timeoutMs = options.timeoutMs ?? ETCD_TIMEOUT_MS;
    this.#fetch = options.fetch ?? fetch;
  }

  /** What the key holds, or nothing where it does not exist. */
  async get(key: string): Promise<EtcdEntry | undefined> {
    const [entry] = readRange(await this.#call("kv/range", rangeRequest(key)));
    return entry;
  }

  /** All keys that begin so, in their order; the first ones where there are more than `countMax`. */
  async list(prefix: string, countMax: number): Promise<readonly EtcdEntry[]> {
    return readRange(await this.#call("kv/range", prefixRequest(prefix, countMax)));
  }

  async put(put: EtcdPut): Promise<void> {
    await this.#call("kv/put", putRequest(put));
  }

  /** Do all of it or nothing. */
  async transact(transaction: EtcdTransaction): Promise<EtcdOutcome> {
    return readTxn(await this.#call("kv/txn", txnRequest(transaction)));
  }

  /** Make a lease of so many seconds; etcd makes it longer where that is shorter than it can keep. */
  async grantLease(ttlS: number): Promise<EtcdLease> {
    return readGrant(await this.#call("lease/grant", { TTL: String(ttlS) }));
  }

  /** @returns Whether it has been there to be kept alive */
  async keepLease(id: string): Promise<boolean> {
    return readKeepAlive(await this.#call("lease/keepalive", { ID: id })).ttlS > 0;
  }

  /** End a lease, and with it all keys that go with it. */
  async revokeLease(id: string): Promise<void> {
    await this.#call("lease/revoke", { ID: id });
  }

  /** Ask the endpoints in turn, beginning with the one that answered last. */
  async #call(path: string, body: unknown): Promise<unknown> {
    const failures: string[] = [];
    const first = this.#preferred;
    for (let turn = 0; turn < this.#endpoints.length; turn++) {
      const index = (first + turn) % this.#endpoints.length;
      const endpoint = this.#endpoints[index]!;
      const answer = await this.#ask(`${endpoint}/v3/${path}`, body);
      if (answer instanceof NoAnswer) {
        failures.push(`${endpoint}: ${answer.reason}`);
        continue;
      }
      this.#preferred = index;
      const refusal = readRefusal(answer);
      if (refusal === undefined) return answer;
      throw new ArbiterError(`Cannot ask etcd for ${path}: ${refusal.message}`, refusal.code);
    }
    throw new ArbiterError(`Cannot reach etcd: ${failures.join("; ")}; see whether it runs`);
  }

  async #ask(url: string, body: unknown): Promise<unknown> {
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), this.#timeoutMs);
    try {
      const response = await this.#fetch(url, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
        redirect: "error",
        signal: controller.signal,
      });
      const answer = parseAnswer(await readText(response));
      if (answer === undefined) return new NoAnswer(`status ${response.status} without JSON`);
      const refusal = readRefusal(answer);
      if (refusal?.transient) return new NoAnswer(refusal.message);
      if (!response.ok && refusal === undefined) return new NoAnswer(`status ${response.status}`);
      return answer;
    } catch (error) {
      const isLate = controller.signal.aborted;
      return new NoAnswer(isLate ? `no answer within ${this.#timeoutMs} ms` : innermost(error));
    } finally {
      clearTimeout(timer);
    }
  }
}

/** An endpoint has said nothing that can be used. */
class NoAnswer {
  constructor(readonly reason: string) {}
}

/** `fetch` says what happened at the end of its cause, behind the URL and the layers it went through. */
function innermost(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined;
  return cause === undefined ? messageOf(error) : messageOf(cause).split(": ").at(-1) ?? "";
}

function checkEndpoint(text: string): string {
  const url = URL.parse(text);
  const isUsable = url !== null && /^https?:$/.test(url.protocol) && url.search === "" &&
    url.hash === "";
  if (isUsable) return url.href.replace(/\/$/, "");
  throw new ConfigError(
    `Cannot use etcd endpoint ${
      JSON.stringify(text)
    }: it is no URL; write it as http://10.0.0.1:2379`,
  );
}

/** The body of an answer, which is never trusted to be short. */
async function readText(response: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  let sizeBytes = 0;
  for await (const bytes of response.body ?? []) {
    sizeBytes += bytes.length;
    if (sizeBytes > ETCD_ANSWER_BYTES_MAX) {
      throw new ArbiterError(`Cannot read an answer of more than ${ETCD_ANSWER_BYTES_MAX} bytes`);
    }
    text += decoder.decode(bytes, { stream: true });
  }
  return text + decoder.decode();
}

/** JSON; of a stream of answers, one a line, the first. */
function parseAnswer(text: string): unknown {
  try {
    return JSON.parse(text.trim().split("\n", 1)[0] ?? "");
  } catch {
    return undefined;
  }
}
