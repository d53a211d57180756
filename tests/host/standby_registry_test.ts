import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { ArbiterError } from "../../engine/errors.ts";
import type { Standby } from "../../engine/failover/etcd_standbys.ts";
import {
  SecondaryFinder,
  StandbyOffer,
  type Standbys,
} from "../../engine/host/standby_registry.ts";
import type { LinkAddress } from "../../engine/link/mod.ts";

class FakeStandbys implements Standbys {
  readonly said: string[] = [];
  listed: readonly Standby[] = [];
  isAway = false;
  looks = 0;

  offer({ id }: Standby): Promise<void> {
    this.said.push(`offer ${id}`);
    return this.#answer(undefined);
  }

  withdraw(): Promise<void> {
    this.said.push("withdraw");
    return this.#answer(undefined);
  }

  list(): Promise<readonly Standby[]> {
    this.looks++;
    return this.#answer(this.listed);
  }

  #answer<T>(value: T): Promise<T> {
    return this.isAway
      ? Promise.reject(new ArbiterError("Cannot reach etcd"))
      : Promise.resolve(value);
  }
}

function at(port: number, hostname = "10.0.0.2"): LinkAddress {
  return { transport: "tcp", hostname, port };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

Deno.test("StandbyOffer offers again and again, says once that it cannot, and withdraws", async () => {
  const standbys = new FakeStandbys();
  const notices: string[] = [];
  const offer = new StandbyOffer(
    standbys,
    { id: "b", address: at(7700) },
    30,
    (text) => notices.push(text),
  );
  await sleep(100);
  standbys.isAway = true;
  await sleep(100);
  standbys.isAway = false;
  await offer.withdraw();
  const { length } = standbys.said;
  await sleep(50);
  assertEquals(standbys.said.length, length, "it is offered when it was withdrawn");
  assertEquals(standbys.said.at(-1), "withdraw");
  assertEquals(standbys.said.slice(0, 4), Array(4).fill("offer b"));
  assertEquals(notices, ["Cannot offer this standby: Cannot reach etcd"]);
});

Deno.test("StandbyOffer offers no address that others do not reach", async () => {
  const standbys = new FakeStandbys();
  const notices: string[] = [];
  const address = at(7700, "0.0.0.0");
  const offer = new StandbyOffer(standbys, { id: "b", address }, 30, (text) => notices.push(text));
  await offer.withdraw();
  assertEquals(standbys.said, []);
  assertStringIncludes(notices[0]!, "replication.listen");
});

Deno.test("SecondaryFinder tries the peer, then whoever is registered but itself", async () => {
  const standbys = new FakeStandbys();
  const finder = new SecondaryFinder(at(1), standbys, "own");
  assertEquals(await finder.candidates(0), [at(1)]);
  standbys.listed = [{ id: "own", address: at(2) }, { id: "c", address: at(3) }];
  await finder.candidates(999);
  assertEquals(standbys.looks, 1, "looked again too soon");
  await finder.candidates(1000);
  assertEquals(await finder.candidates(1001), [at(1), at(3)]);
  standbys.isAway = true;
  await finder.candidates(2000);
  assertEquals(await finder.candidates(2001), [at(1), at(3)], "forgotten while etcd is away");
  assertEquals(standbys.looks, 3);
  const alone = new SecondaryFinder(undefined, undefined, "own");
  assertEquals(await alone.candidates(0), []);
  standbys.isAway = false;
  const anybody = new SecondaryFinder(undefined, standbys, "own");
  assertEquals(await anybody.candidates(0), [at(3)], "who is registered is waited for");
  alone.order(at(9));
  finder.order(at(9));
  assertEquals(await alone.candidates(0), [at(9)]);
  assertEquals(await finder.candidates(3000), [at(9)]);
});
