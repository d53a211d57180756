/**
 * An etcd in memory behind its JSON gateway, as far as the client speaks to it: keys with revisions,
 * transactions, leases by a clock that the test moves. It answers as etcd 3.4 does: 64-bit numbers as
 * texts, fields of value zero left out, a lease that is kept alive in a stream.
 */

/** What becomes of a request. */
export type Fate =
  | "answered"
  /** Nobody listens there. */
  | "refused"
  /** It does not arrive, and nobody says so. */
  | "request lost"
  /** It is done, and the connection breaks before the answer. */
  | "answer lost"
  /** It is done, and the answer does not come. */
  | "silent"
  /** It arrives when {@linkcode FakeEtcd.deliverLate} is called; the client has given up by then. */
  | "late"
  /** There is no leader. */
  | "unavailable";

interface Stored {
  readonly value: string;
  readonly createRevision: number;
  readonly modRevision: number;
  readonly version: number;
  readonly lease: string | undefined;
}

interface Lease {
  readonly ttlS: number;
  endsMs: number;
}

/** What a body may hold; each request and each part of one has some of it. */
interface Body {
  readonly key: string;
  readonly value: string;
  readonly lease?: string;
  readonly range_end?: string;
  readonly limit?: string;
  readonly ID: string;
  readonly TTL: string;
  readonly target: string;
  readonly result: string;
  readonly mod_revision: string;
  readonly compare: readonly Body[];
  readonly success: readonly { readonly request_put: Body }[];
  readonly failure: readonly { readonly request_range: Body }[];
}

/** etcd's own bound with its usual election timeout of a second. */
const TTL_S_MIN = 2;

export class FakeEtcd {
  nowMs = 0;
  /** What becomes of the next request to an endpoint. */
  fate: (path: string, endpoint: string) => Fate = () => "answered";
  /** Paths of all requests that were made. */
  readonly asked: string[] = [];
  #revision = 1;
  #lastLease = 7587869430000000000n;
  #late: (() => void)[] = [];
  readonly #keys = new Map<string, Stored>();
  readonly #leases = new Map<string, Lease>();

  /** What a key holds, unencoded. */
  get(key: string): string | undefined {
    this.#expire();
    const stored = this.#keys.get(btoa(key));
    return stored && atob(stored.value);
  }

  /** Write a key, as somebody else. */
  set(key: string, value: string): void {
    this.#revision++;
    this.#write(btoa(key), btoa(value), undefined);
  }

  /** All is gone, as when etcd was set up anew. */
  wipe(): void {
    this.#keys.clear();
    this.#leases.clear();
    this.#revision = 1;
  }

  /** What was under way arrives. */
  deliverLate(): void {
    for (const deliver of this.#late.splice(0)) deliver();
  }

  /** In the place of `fetch`. */
  readonly fetch = async (url: string, init: RequestInit): Promise<Response> => {
    const { origin, pathname } = new URL(url);
    const path = pathname.replace(/^\/v3\//, "");
    this.asked.push(path);
    const body: Body = JSON.parse(String(init.body));
    const fate = this.fate(path, origin);
    switch (fate) {
      case "refused":
        throw new TypeError("connection refused");
      case "unavailable":
        return refusal(14, "etcdserver: no leader", 503);
      case "late":
        this.#late.push(() => void this.#answer(path, body));
        return await silence(init.signal);
      case "request lost":
        return await silence(init.signal);
    }
    const answer = this.#answer(path, body);
    if (fate === "silent") return await silence(init.signal);
    if (fate === "answer lost") throw new TypeError("connection reset");
    return answer;
  };

  #answer(path: string, body: Body): Response {
    this.#expire();
    switch (path) {
      case "kv/range":
        return Response.json(this.#range(body));
      case "kv/put":
        if (!this.#hasLease(body)) return leaseNotFound();
        this.#revision++;
        this.#write(body.key, body.value, body.lease);
        return Response.json({ header: this.#header() });
      case "kv/txn":
        return this.#txn(body);
      case "lease/grant": {
        const ttlS = Math.max(TTL_S_MIN, Number(body.TTL));
        const id = String(++this.#lastLease);
        this.#leases.set(id, { ttlS, endsMs: this.nowMs + 1000 * ttlS });
        return Response.json({ header: this.#header(), ID: id, TTL: String(ttlS) });
      }
      case "lease/keepalive": {
        const lease = this.#leases.get(body.ID);
        if (lease !== undefined) lease.endsMs = this.nowMs + 1000 * lease.ttlS;
        const ttl = lease === undefined ? {} : { TTL: String(lease.ttlS) };
        const result = { header: this.#header(), ID: body.ID, ...ttl };
        return new Response(`${JSON.stringify({ result })}\n`);
      }
      case "lease/revoke":
        if (!this.#leases.has(body.ID)) return leaseNotFound();
        this.#end(body.ID);
        return Response.json({ header: this.#header() });
      default:
        return new Response("404 page not found\n", { status: 404 });
    }
  }

  #range({ key, range_end, limit }: Body) {
    const end = range_end === undefined ? undefined : atob(range_end);
    const kvs = [...this.#keys]
      .filter(([stored]) =>
        end === undefined ? stored === key : atob(stored) >= atob(key) && atob(stored) < end
      )
      .sort(([a], [b]) => atob(a) < atob(b) ? -1 : 1)
      .map(([stored, { value, createRevision, modRevision, version, lease }]) => ({
        key: stored,
        create_revision: String(createRevision),
        mod_revision: String(modRevision),
        version: String(version),
        value,
        ...(lease === undefined ? {} : { lease }),
      }));
    if (kvs.length === 0) return { header: this.#header() };
    const shown = limit === undefined ? kvs : kvs.slice(0, Number(limit));
    return { header: this.#header(), kvs: shown, count: String(kvs.length) };
  }

  #txn({ compare, success, failure }: Body): Response {
    const holds = compare.every(({ key, target, result, mod_revision, value }) => {
      if (result !== "EQUAL") throw new Error(`not known here: ${result}`);
      const stored = this.#keys.get(key);
      return target === "VALUE"
        // What does not exist has no value that anything could be equal to.
        ? stored !== undefined && stored.value === value
        : String(stored?.modRevision ?? 0) === mod_revision;
    });
    if (!holds) {
      const responses = failure.map(({ request_range }) => ({
        response_range: this.#range(request_range),
      }));
      return Response.json({ header: this.#header(), responses });
    }
    const puts: readonly Body[] = success.map(({ request_put }) => request_put);
    if (!puts.every((put) => this.#hasLease(put))) return leaseNotFound();
    this.#revision++;
    for (const { key, value, lease } of puts) this.#write(key, value, lease);
    const responses = puts.map(() => ({ response_put: { header: this.#header() } }));
    return Response.json({ header: this.#header(), succeeded: true, responses });
  }

  #write(key: string, value: string, lease: string | undefined): void {
    const old = this.#keys.get(key);
    this.#keys.set(key, {
      value,
      createRevision: old?.createRevision ?? this.#revision,
      modRevision: this.#revision,
      version: (old?.version ?? 0) + 1,
      lease,
    });
  }

  #hasLease({ lease }: Body): boolean {
    return lease === undefined || this.#leases.has(lease);
  }

  #expire(): void {
    for (const [id, { endsMs }] of this.#leases) if (this.nowMs >= endsMs) this.#end(id);
  }

  #end(id: string): void {
    this.#leases.delete(id);
    const attached = [...this.#keys].filter(([, { lease }]) => lease === id);
    if (attached.length > 0) this.#revision++;
    for (const [key] of attached) this.#keys.delete(key);
  }

  #header() {
    return {
      cluster_id: "14841639068965178418",
      member_id: "10276657743932975437",
      revision: String(this.#revision),
      raft_term: "2",
    };
  }
}

function leaseNotFound(): Response {
  return refusal(5, "etcdserver: requested lease not found", 404);
}

function refusal(code: number, message: string, status: number): Response {
  return Response.json({ error: message, code, message }, { status });
}

/** No answer, until the client gives up. */
function silence(signal: AbortSignal | null | undefined): Promise<never> {
  const { promise, reject } = Promise.withResolvers<never>();
  signal?.addEventListener("abort", () => reject(signal.reason));
  return promise;
}
