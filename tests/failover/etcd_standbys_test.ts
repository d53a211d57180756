import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import fc from "fast-check";
import { ArbiterError } from "../../engine/errors.ts";
import { EtcdClient } from "../../engine/failover/etcd.ts";
import {
  EtcdStandbys,
  type Standby,
  standbyChanges,
  type StandbyNews,
  watchStandbys,
} from "../../engine/failover/etcd_standbys.ts";
import { FakeEtcd } from "./fake_etcd.ts";

function standbysOf(etcd: FakeEtcd, reach: "host" | "network" = "network"): EtcdStandbys {
  const client = new EtcdClient({ endpoints: ["http://127.0.0.1:2379"], fetch: etcd.fetch });
  return new EtcdStandbys(client, { vm: "web1", reach });
}

function standby(id: string, port = 7700): Standby {
  return { id, address: { transport: "tcp", hostname: "10.0.0.2", port } };
}

Deno.test("a standby is offered for as long as it keeps saying so", async () => {
  const etcd = new FakeEtcd();
  const [first, second, primary] = [standbysOf(etcd), standbysOf(etcd), standbysOf(etcd)];
  await second.offer(standby("b", 7702));
  await first.offer(standby("a"));
  assertEquals(etcd.get("colo/web1/standby/a"), '{"address":"10.0.0.2:7700"}');
  assertEquals(await primary.list(), [standby("a"), standby("b", 7702)]);
  etcd.nowMs = 4000;
  await first.offer(standby("a"));
  etcd.nowMs = 5000;
  assertEquals(await primary.list(), [standby("a")]);
  await second.offer(standby("b"));
  assertEquals(await primary.list(), [standby("a"), standby("b")]);
  await first.withdraw();
  assertEquals(await primary.list(), [standby("b")]);
  // The other one's lease has ended before it withdraws.
  etcd.nowMs = 60_000;
  await second.withdraw();
  await second.withdraw();
  assertEquals(await primary.list(), []);
});

Deno.test("the standbys of one VM are not those of another whose name begins alike", async () => {
  const etcd = new FakeEtcd();
  const client = new EtcdClient({ endpoints: ["http://127.0.0.1:2379"], fetch: etcd.fetch });
  const other = new EtcdStandbys(client, { vm: "web10", reach: "network" });
  await other.offer(standby("a"));
  assertEquals(await standbysOf(etcd).list(), []);
});

Deno.test("what is no address, or out of reach, is passed over", async () => {
  const etcd = new FakeEtcd();
  for (const value of ["", "{}", "[]", '{"address":5}', '{"address":"nowhere"}', "null"]) {
    etcd.set(`colo/web1/standby/${value}`, value);
  }
  etcd.set("colo/web1/standby/far", '{"address":"10.0.0.2:7700"}');
  etcd.set("colo/web1/standby/near", '{"address":"127.0.0.1:7700"}');
  assertEquals((await standbysOf(etcd).list()).map(({ id }) => id), ["far", "near"]);
  assertEquals((await standbysOf(etcd, "host").list()).map(({ id }) => id), ["near"]);
});

Deno.test("an etcd that cannot be reached is an ArbiterError, and the offer is made again later", async () => {
  const etcd = new FakeEtcd();
  const standbys = standbysOf(etcd);
  for (const lost of ["lease/grant", "kv/put"]) {
    etcd.fate = (path) => path === lost ? "answer lost" : "answered";
    await assertRejects(() => standbys.offer(standby("a")), ArbiterError);
  }
  etcd.fate = () => "answered";
  await standbys.offer(standby("a"));
  assertEquals(await standbys.list(), [standby("a")]);
});

Deno.test("the changes between two looks, added to the first, are the second", () => {
  const look = fc.uniqueArray(
    fc.record({ id: fc.constantFrom("a", "b", "c", "d"), port: fc.integer({ min: 1, max: 3 }) })
      .map(({ id, port }) => standby(id, port)),
    { selector: ({ id }) => id },
  );
  const name = ({ id, address }: Standby) => `${id} ${JSON.stringify(address)}`;
  fc.assert(
    fc.property(look, look, (before, after) => {
      const { added, removed } = standbyChanges(before, after);
      const names = new Set(before.map(name));
      for (const standby of removed) assert(names.delete(name(standby)));
      for (const standby of added) names.add(name(standby));
      assertEquals([...names].sort(), after.map(name).sort());
    }),
  );
});

Deno.test("a watcher is told of the first look, of each change, and once that etcd is silent", async () => {
  const lost = new ArbiterError("Cannot reach etcd: gone");
  const looks = [[], [], lost, lost, [], [standby("a")], [standby("a")], [standby("b")], lost];
  let at = 0;
  const news: StandbyNews[] = [];
  const watched = watchStandbys(
    () => {
      const look = looks[at]!;
      return look instanceof ArbiterError ? Promise.reject(look) : Promise.resolve(look);
    },
    () => Promise.resolve(++at < looks.length),
  );
  for await (const told of watched) news.push(told);
  assertEquals(news, [
    { type: "standbys", standbys: [], added: [], removed: [] },
    { type: "unreachable", reason: "Cannot reach etcd: gone" },
    { type: "standbys", standbys: [], added: [], removed: [] },
    { type: "standbys", standbys: [standby("a")], added: [standby("a")], removed: [] },
    { type: "standbys", standbys: [standby("b")], added: [standby("b")], removed: [standby("a")] },
    { type: "unreachable", reason: "Cannot reach etcd: gone" },
  ]);
});
