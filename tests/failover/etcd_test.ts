import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { ArbiterError, ConfigError } from "../../engine/errors.ts";
import { EtcdClient } from "../../engine/failover/etcd.ts";
import { ETCD_ANSWER_BYTES_MAX } from "../../engine/limits.ts";
import { FakeEtcd } from "./fake_etcd.ts";

const ENDPOINTS = ["http://127.0.0.1:2379", "http://127.0.0.2:2379", "http://127.0.0.3:2379"];

function clientOf(etcd: FakeEtcd): EtcdClient {
  // Short, since silent requests are waited for.
  return new EtcdClient({ endpoints: ENDPOINTS, timeoutMs: 20, fetch: etcd.fetch });
}

Deno.test("an endpoint that does not answer is left for the next one, and asked last from then on", async () => {
  for (const fate of ["refused", "request lost", "unavailable"] as const) {
    const etcd = new FakeEtcd();
    etcd.set("key", "value");
    const asked: string[] = [];
    etcd.fate = (_path, endpoint) => {
      asked.push(endpoint);
      return endpoint === ENDPOINTS[0] ? fate : "answered";
    };
    const client = clientOf(etcd);
    assertEquals((await client.get("key"))?.value, "value");
    await client.get("key");
    assertEquals(asked, [ENDPOINTS[0], ENDPOINTS[1], ENDPOINTS[1]]);
  }
});

Deno.test("what etcd refuses is not asked of the next one, and says why", async () => {
  const etcd = new FakeEtcd();
  const client = clientOf(etcd);
  const error = await assertRejects(
    () => client.put({ key: "a", value: "b", lease: "12345" }),
    ArbiterError,
    "requested lease not found",
  );
  assertEquals(error.code, 5);
  assertEquals(etcd.asked, ["kv/put"]);
  await assertRejects(() => client.revokeLease("12345"), ArbiterError);
  assertEquals(await client.keepLease("12345"), false);
});

Deno.test("answers that are none are an ArbiterError, however wrong they are", async () => {
  const bodies = fc.oneof(
    fc.json(),
    fc.string(),
    fc.constantFrom(
      "",
      "{}",
      '{"kvs":[{}]}',
      '{"kvs":[{"key":"%","mod_revision":"1"}]}',
      '{"succeeded":true}',
      '{"result":{}}',
      '{"error":{}}',
      '{"kvs":[{"key":"YQ==","mod_revision":7}]}',
    ),
  );
  await fc.assert(
    fc.asyncProperty(bodies, fc.constantFrom(200, 404, 500), async (body, status) => {
      const client = new EtcdClient({
        endpoints: ENDPOINTS,
        fetch: () => Promise.resolve(new Response(body, { status })),
      });
      const calls: readonly (() => Promise<unknown>)[] = [
        () => client.get("a"),
        () => client.list("a/", 5),
        () => client.grantLease(5),
        () => client.keepLease("1"),
        () => client.transact({ conditions: [], puts: [], otherwiseRead: [] }),
      ];
      for (const call of calls) {
        await call().catch((error) => assert(error instanceof ArbiterError, String(error)));
      }
    }),
  );
});

Deno.test("an endpoint that is no URL is refused", () => {
  for (const endpoint of ["10.0.0.1:2379", "ftp://a", "", "http://a/?x=1"]) {
    assertThrows(
      () => new EtcdClient({ endpoints: [endpoint] }),
      ConfigError,
      "Cannot use etcd endpoint",
    );
  }
  assertThrows(() => new EtcdClient({ endpoints: [] }), ConfigError, "no endpoint is given");
});

Deno.test("keys and values of any text come back as they went", async () => {
  const etcd = new FakeEtcd();
  const client = clientOf(etcd);
  await fc.assert(
    fc.asyncProperty(
      fc.string({ unit: "grapheme", minLength: 1 }),
      fc.string(),
      async (key, value) => {
        await client.put({ key, value });
        assertEquals((await client.get(key))?.value, value);
      },
    ),
  );
});

Deno.test("an answer that is too long is not read to its end", async () => {
  let pulled = 0;
  const endless = () =>
    new ReadableStream({
      pull: (controller) => {
        pulled += 65536;
        controller.enqueue(new Uint8Array(65536).fill(0x20));
      },
    });
  const client = new EtcdClient({
    endpoints: ENDPOINTS.slice(0, 1),
    fetch: () => Promise.resolve(new Response(endless())),
  });
  await assertRejects(() => client.get("a"), ArbiterError, "an answer of more than");
  assert(pulled < 2 * ETCD_ANSWER_BYTES_MAX, `${pulled} bytes were read`);
});
