import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { ConfigError } from "../../engine/errors.ts";

const SMALLEST = '[vm]\nname = "a"\nmemory = 256\nkernel = "vmlinuz"\n';

function failover(lines: string) {
  return parseVmConfig(`${SMALLEST}[failover]\n${lines}`, "/etc/a.toml").failover;
}

Deno.test("parseVmConfig has two hosts decide by themselves unless told otherwise", () => {
  assertEquals(failover(""), {
    arbiter: "manual",
    endpoints: [],
    leaseMs: 5000,
    heartbeatMs: 100,
    timeoutMs: 500,
  });
  assertEquals(failover("heartbeat = 200").timeoutMs, 800);
});

Deno.test("parseVmConfig refuses what no failover can be made with", () => {
  const cases: readonly [string, string][] = [
    ['arbiter = "etcd"', "failover.endpoints is missing: say where etcd listens"],
    ['arbiter = "zookeeper"', "must be manual or etcd"],
    ['arbiter = "etcd"\nendpoints = ["10.0.0.1:2379"]', "which is no URL"],
    ["heartbeat = 200\ntimeout = 500", "must be at least 4 times failover.heartbeat"],
    ['fence = ["fence_ipmilan"]', "failover.fencePlug is missing"],
    ['fencePlug = "a"', "failover.fencePlug needs failover.fence as well"],
    ['fence = ["f"]\nfencePlug = "a"\nfenceOptions = ["password"]', 'which is no "key=value"'],
    ["lease = 500", "must be a whole number from 2000"],
  ];
  for (const [lines, message] of cases) {
    assertThrows(() => failover(lines), ConfigError, message, lines);
  }
});

Deno.test("parseVmConfig reads rules for flows that are compared with nothing", () => {
  const { network } = parseVmConfig(
    `${SMALLEST}[network]\ntimeout = 50\n[[network.exclude]]\nprotocol = "udp"\n` +
      'destination = "fd00::/8"\ndestinationPort = 53',
    "/etc/a.toml",
  );
  assertEquals(network, {
    timeoutMs: 50,
    excluded: [{ protocol: "udp", destination: "fd00::/8", destinationPort: 53 }],
  });
  const wrong = `${SMALLEST}[[network.exclude]]\nsource = "10.0.0"`;
  assertThrows(() => parseVmConfig(wrong, "/etc/a.toml"), ConfigError, "network.exclude[0].source");
});
