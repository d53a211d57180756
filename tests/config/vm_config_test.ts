import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  formatVmConfig,
  parseVmConfig,
  requireListen,
  requirePeer,
  type VmConfig,
} from "../../engine/config/mod.ts";
import { ConfigError } from "../../engine/errors.ts";
import type { LinkAddress } from "../../engine/link/address.ts";

const PATH = "/srv/web1/vm.toml";
const SMALLEST = '[vm]\nname = "web1"\nmemory = 256\nkernel = "vmlinuz"\n';

const DISK = `${SMALLEST}[[vm.disks]]\npath = "a"\nformat = "raw"\n`;

/** Texts as a command line can hold them: without control characters. */
const line = fc.string({ unit: "grapheme", minLength: 1, maxLength: 40 })
  .filter((text) => !/\p{Cc}/u.test(text) && text.isWellFormed());
const file = line.map((text) => `/${text.replaceAll(/[/.]/g, "_")}`);
const address: fc.Arbitrary<LinkAddress> = fc.oneof(
  fc.record({
    transport: fc.constant("tcp" as const),
    hostname: fc.constantFrom("127.0.0.1", "127.8.0.9", "::1", "10.0.0.2", "host-b.example"),
    port: fc.integer({ min: 1, max: 65535 }),
  }),
  fc.record({
    transport: fc.constant("unix" as const),
    path: file.filter((path) => new TextEncoder().encode(path).length <= 107),
  }),
);
const staysHere = (address: LinkAddress | undefined) =>
  address?.transport !== "tcp" || /^127\.|^::1$/.test(address.hostname);
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
const mac = fc.array(fc.nat(255), { minLength: 5, maxLength: 5 })
  .map((bytes) => [0x52, ...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(":"));

const config: fc.Arbitrary<VmConfig> = fc.record({
  path: fc.constant(PATH),
  vm: fc.record({
    name: fc.stringMatching(/^[a-zA-Z0-9_.-]{1,63}$/),
    machine: fc.constantFrom("pc", "q35", "pc-i440fx-11.1", "pc-q35-7.2"),
    memoryMiB: fc.integer({ min: 16, max: 1024 * 1024 }),
    cpus: fc.integer({ min: 1, max: 255 }),
    accel: maybe(fc.constantFrom("tcg" as const, "kvm" as const)),
    kernel: file,
    initrd: maybe(file),
    append: maybe(line),
    console: maybe(file),
    extraArgs: fc.array(line, { maxLength: 4 }),
    disks: fc.array(
      fc.record({ path: file, format: fc.constantFrom("raw" as const, "qcow2" as const) }),
      { maxLength: 3 },
    ),
    nics: fc.array(
      fc.record({
        mac,
        netdev: fc.constantFrom("user", "user,hostfwd=tcp:127.0.0.1:8080-:80", "tap,ifname=tap0"),
        model: fc.constantFrom("virtio-net-pci", "e1000"),
        vnetHdr: fc.boolean(),
        bridge: fc.constantFrom("br0", "lan"),
        script: file,
      }, { requiredKeys: ["mac", "netdev", "model", "vnetHdr"] }).map((nic) => {
        const { bridge, ...rest } = nic;
        return nic.netdev.startsWith("tap") && bridge !== undefined ? { ...rest, bridge } : rest;
      }),
      { maxLength: 3 },
    ).filter((nics) => new Set(nics.map(({ mac }) => mac)).size === nics.length),
  }),
  replication: fc.record({
    mode: fc.constantFrom("colo" as const, "continuous" as const),
    periodMs: fc.integer({ min: 1000, max: 600_000 }),
    microPeriodMs: fc.oneof(fc.constant(0), fc.integer({ min: 500, max: 999 })),
    minIntervalMs: fc.integer({ min: 1, max: 500 }),
    pauseShareMax: fc.integer({ min: 1, max: 100 }).map((percent) => percent / 100),
    inFlightMax: fc.integer({ min: 1, max: 16 }),
    revive: fc.boolean(),
    stateDirectory: maybe(file),
    sharedMemory: fc.boolean(),
    overlayDirectory: maybe(file),
    encryption: maybe(fc.constant("none" as const)),
    peer: maybe(address),
    listen: maybe(address),
  }).map((replication) =>
    replication.mode === "colo" ? replication : { ...replication, microPeriodMs: 0 }
  ).map((replication) =>
    [replication.peer, replication.listen].every(staysHere)
      ? replication
      : { ...replication, encryption: "none" as const }
  ),
  network: fc.record({
    timeoutMs: fc.integer({ min: 10, max: 60_000 }),
    excluded: fc.array(
      fc.record({
        protocol: fc.constantFrom("tcp" as const, "udp" as const, "icmp" as const),
        source: fc.constantFrom("10.0.0.0/8", "fd00::1"),
        sourcePort: fc.integer({ min: 1, max: 65535 }),
        destination: fc.constantFrom("192.0.2.1", "fd00::/8"),
        destinationPort: fc.integer({ min: 1, max: 65535 }),
      }, { requiredKeys: [] }),
      { maxLength: 2 },
    ),
  }),
  failover: fc.record({
    arbiter: fc.constantFrom("manual" as const, "etcd" as const),
    endpoints: fc.constantFrom(["http://10.0.9.9:2379"], ["http://a:1", "https://b:2"]),
    leaseMs: fc.integer({ min: 2000, max: 600_000 }),
    heartbeatMs: fc.integer({ min: 10, max: 100 }),
    timeoutMs: fc.integer({ min: 400, max: 60_000 }),
    fence: fc.record({
      command: fc.constantFrom(["fence_ipmilan"], ["/bin/fence", "-v"]),
      plug: fc.constantFrom("host-a", "7"),
      delayMs: fc.integer({ min: 0, max: 600_000 }),
      options: fc.constantFrom({}, { ip: "10.0.9.2", password: "a=b" }),
    }),
  }, { requiredKeys: ["arbiter", "endpoints", "leaseMs", "heartbeatMs", "timeoutMs"] }),
  qemuPath: maybe(file),
  store: maybe(
    fc.record({ directory: file, retain: fc.integer({ min: 1, max: 1000 }), images: file }, {
      requiredKeys: ["directory"],
    }),
  ),
  controlPath: maybe(file),
}).map(({ store, controlPath, ...config }) => ({
  ...config,
  vm: config.replication.revive
    ? { ...config.vm, kernel: config.vm.kernel ?? "/boot/vmlinuz", disks: [] }
    : config.replication.mode === "colo"
    ? config.vm
    : {
      ...config.vm,
      disks: config.vm.disks.filter(({ format }) => format === "raw"),
      kernel: config.vm.kernel ?? "/boot/vmlinuz",
    },
  ...(store === undefined ? {} : { store }),
  ...(controlPath === undefined ? {} : { controlPath }),
}));

Deno.test("formatVmConfig writes what parseVmConfig reads", () => {
  fc.assert(
    fc.property(config, (config) => {
      assertEquals(parseVmConfig(formatVmConfig(config), PATH), config);
    }),
    { numRuns: 300 },
  );
});

Deno.test("parseVmConfig fills in the defaults", () => {
  const { vm, replication, qemuPath } = parseVmConfig(SMALLEST, PATH);
  assertEquals([vm.machine, vm.cpus, vm.accel], ["pc", 1, undefined]);
  assertEquals([vm.disks, vm.nics, vm.extraArgs], [[], [], []]);
  assertEquals(replication, {
    mode: "colo",
    periodMs: 500,
    microPeriodMs: 0,
    minIntervalMs: 20,
    pauseShareMax: 0.05,
    inFlightMax: 1,
    revive: false,
    stateDirectory: undefined,
    sharedMemory: true,
    overlayDirectory: undefined,
    encryption: undefined,
    peer: undefined,
    listen: undefined,
  });
  assertEquals(qemuPath, undefined);
});

Deno.test("parseVmConfig gives mode continuous a period and a bound of its own", () => {
  const parse = (lines: string) =>
    parseVmConfig(`${SMALLEST}[replication]\nmode = "continuous"\n${lines}`, PATH).replication;
  const figures = (lines: string) => {
    const { periodMs, minIntervalMs, pauseShareMax } = parse(lines);
    return [periodMs, minIntervalMs, pauseShareMax];
  };
  assertEquals(figures(""), [100, 20, 0.5]);
  assertEquals(figures("period = 25"), [25, 20, 0.5]);
  assertEquals(figures('period = "adaptive"'), [25, 20, 0.1]);
  assertEquals(figures('period = "adaptive"\npauseShare = 20'), [25, 20, 0.2]);
});

Deno.test("parseVmConfig reads the example of its documentation", async () => {
  const module = new URL("../../engine/config/vm_config.ts", import.meta.url);
  const source = await Deno.readTextFile(module);
  const example = /```toml\n([\s\S]*?)```/.exec(source)?.[1]?.replaceAll(/^ \* ?/gm, "");
  assert(example !== undefined);
  const { vm, replication, qemuPath } = parseVmConfig(example, PATH);
  assertEquals([vm.name, vm.memoryMiB, vm.cpus], ["web1", 2048, 2]);
  assertEquals(vm.disks, [{ path: "/srv/web1/web1.qcow2", format: "qcow2" }]);
  assertEquals(vm.nics.length, 1);
  assertEquals(replication.peer, { transport: "tcp", hostname: "127.0.0.1", port: 7700 });
  assertEquals(replication.listen, replication.peer);
  assertEquals(qemuPath, "/opt/qemu/bin/qemu-system-x86_64");
});

Deno.test("parseVmConfig takes memory as a number and with a unit", () => {
  for (const [text, memoryMiB] of [["256", 256], ['"512MiB"', 512], ['"6GiB"', 6144]] as const) {
    assertEquals(parseVmConfig(SMALLEST.replace("256", text), PATH).vm.memoryMiB, memoryMiB);
  }
});

Deno.test("parseVmConfig takes relative paths from the file's directory", () => {
  const { vm, qemuPath } = parseVmConfig(
    '[vm]\nname = "a"\nmemory = 64\nkernel = "/boot/vmlinuz"\nconsole = "../log/console"\n' +
      '[[vm.disks]]\npath = "./disk"\nformat = "raw"\n[qemu]\npath = "bin/qemu"\n',
    PATH,
  );
  assertEquals(vm.kernel, "/boot/vmlinuz");
  assertEquals(vm.console, "/srv/log/console");
  assertEquals(vm.disks[0]?.path, "/srv/web1/disk");
  assertEquals(qemuPath, "/srv/web1/bin/qemu");
});

const MEMORY = 'but must be 16 to 1048576 MiB, such as 512 or "2GiB"';
const ONE_LINE = "but must be one line without control characters";
const MACHINE = "but must be pc, q35 or a version of them such as pc-i440fx-9.2 or pc-q35-9.2";
const MAC =
  "but must be six bytes such as 52:54:00:12:34:56, not all zero, the first of them even " +
  "(an odd one is a group's)";
const NETDEV = 'but must be what follows -netdev, without id=, such as "user" or ' +
  '"tap,ifname=tap0,script=no"';
const FIRST_NIC = 'mac = "52:54:00:12:34:56"\nnetdev = "user"';
const nic = (rest: string) => `${SMALLEST}[[vm.nics]]\n${rest}\n`;

/** What follows "Cannot use /srv/web1/vm.toml: " for each wrong text. */
const REFUSED: Readonly<Record<string, string>> = {
  "": "vm.name is missing",
  '[vm]\nnmae = "a"': "vm.nmae is not known: did you mean name",
  '[vm]\nmemory = 64\n[replication]\npeeer = "x"':
    "replication.peeer is not known: did you mean peer",
  '[vm]\n"na\\nme\\u007f" = 1\n': 'vm."na\\nme\\u007f" is not known: did you mean name',
  "x = 1": "x is not known (known: vm, replication, network, failover, qemu, store, control)",
  '"v m" = 1\n': '"v m" is not known: did you mean vm',
  '[vm]\nx = "a"':
    "vm.x is not known (known: name, machine, memory, cpus, accel, kernel, initrd, " +
    "append, console, extraArgs, disks, nics)",
  "vm = 1": "vm must be a table: [vm]",
  '[vm]\nname = "a b"\nmemory = 64':
    'vm.name is "a b", but must be 1 to 63 letters, digits, _ . or -',
  '[vm]\nname = "a"': "vm.memory is missing",
  [SMALLEST.replace("256", "8")]: `vm.memory is 8, ${MEMORY}`,
  [SMALLEST.replace("256", "256.5")]: `vm.memory is 256.5, ${MEMORY}`,
  [SMALLEST.replace("256", '"6GB"')]: `vm.memory is "6GB", ${MEMORY}`,
  [SMALLEST.replace("256", '"2000GiB"')]: `vm.memory is "2000GiB", ${MEMORY}`,
  [`${SMALLEST}kernal = "a"`]: "vm.kernal is not known: did you mean kernel",
  [`${SMALLEST}[replication]\nintervall = 5`]: "replication.intervall is not known " +
    "(known: mode, period, microPeriod, minInterval, pauseShare, inFlight, revive, " +
    "stateDirectory, sharedMemory, overlayDirectory, encryption, peer, listen)",
  [`${SMALLEST}cpus = 0`]: "vm.cpus is 0, but must be a whole number from 1 to 255",
  [`${SMALLEST}cpus = "two"`]: 'vm.cpus is "two", but must be a whole number from 1 to 255',
  [`${SMALLEST}accel = "hvf"`]: 'vm.accel is "hvf", but must be tcg or kvm',
  [`${SMALLEST}console = ""`]: "vm.console must be a text",
  [`${SMALLEST}cpus = nan`]: "vm.cpus is nan, but must be a whole number from 1 to 255",
  [`${SMALLEST}cpus = -inf`]: "vm.cpus is -inf, but must be a whole number from 1 to 255",
  [SMALLEST.replace("256", "inf")]: `vm.memory is inf, ${MEMORY}`,
  [`${SMALLEST}accel = "${"x".repeat(200)}"`]: `vm.accel is "${
    "x".repeat(98)
  }\u2026, but must be tcg or kvm`,
  [`${SMALLEST}machine = "virt"`]: `vm.machine is "virt", ${MACHINE}`,
  [`${SMALLEST}machine = "pc-i440fx"`]: `vm.machine is "pc-i440fx", ${MACHINE}`,
  [`${SMALLEST}machine = "pc,usb=on"`]: `vm.machine is "pc,usb=on", ${MACHINE}`,
  [`${SMALLEST}append = "a\\nb"`]: `vm.append is "a\\nb", ${ONE_LINE}`,
  [`${SMALLEST}append = """\na\nb"""`]: `vm.append is "a\\nb", ${ONE_LINE}`,
  [`${SMALLEST}console = "a\\u0000"`]: `vm.console is "a\\u0000", ${ONE_LINE}`,
  [`${SMALLEST}console = "a\\u009b"`]: `vm.console is "a\\u009b", ${ONE_LINE}`,
  [`${SMALLEST}extraArgs = ["-S", "\\u007f"]`]: `vm.extraArgs[1] is "\\u007f", ${ONE_LINE}`,
  [`${SMALLEST}extraArgs = "-S"`]: "vm.extraArgs must be a list of texts",
  [`${SMALLEST}extraArgs = [1]`]: "vm.extraArgs must be a list of texts",
  [SMALLEST.replace("kernel", "initrd")]: "vm.initrd needs vm.kernel as well",
  [SMALLEST.replace("kernel", "append")]: "vm.append needs vm.kernel as well",
  [SMALLEST.replace('kernel = "vmlinuz"', 'extraArgs = ["-cdrom", "a.iso"]')]:
    "vm.kernel is missing: give vm.kernel or [[vm.disks]]",
  [`${SMALLEST}[vm.disks]\npath = "a"`]: "vm.disks must be tables: [[vm.disks]]",
  [`${SMALLEST}[[vm.disks]]\nformat = "raw"`]: "vm.disks[0].path is missing",
  [`${SMALLEST}[[vm.disks]]\npath = "a"`]: "vm.disks[0].format is missing: say raw or qcow2, " +
    "whichever the disk is: a qcow2 disk that is written to as raw is destroyed",
  [`${DISK.replace("raw", "qcow2")}[replication]\nmode = "continuous"`]:
    'replication.mode is "continuous", which keeps raw disks alone: convert them, or use "colo"',
  [`${DISK}[replication]\nrevive = true`]:
    "replication.revive would bring back memory that is older than [[vm.disks]]: leave it out",
  [`${SMALLEST}${`[[vm.disks]]\npath = "a"\nformat = "raw"\n`.repeat(29)}`]:
    "vm.disks has 29 disks, of which 28 can be replicated",
  [`${SMALLEST}[[vm.disks]]\npath = "a"\nformat = "vmdk"`]:
    'vm.disks[0].format is "vmdk", but must be raw or qcow2',
  [nic('netdev = "user"')]: "vm.nics[0].mac is missing",
  [nic('mac = "52:54:00"\nnetdev = "user"')]: `vm.nics[0].mac is "52:54:00", ${MAC}`,
  [nic('mac = "53:54:00:12:34:56"\nnetdev = "user"')]:
    `vm.nics[0].mac is "53:54:00:12:34:56", ${MAC}`,
  [nic('mac = "00:00:00:00:00:00"\nnetdev = "user"')]:
    `vm.nics[0].mac is "00:00:00:00:00:00", ${MAC}`,
  [
    `${nic('mac = "52:54:00:AB:34:56"\nnetdev = "user"')}[[vm.nics]]\nmac = "52:54:00:ab:34:56"` +
    '\nnetdev = "user"'
  ]: 'vm.nics[1].mac is "52:54:00:ab:34:56", which vm.nics[0] has already',
  [nic(FIRST_NIC.replace("user", "user,id=a"))]: `vm.nics[0].netdev is "user,id=a", ${NETDEV}`,
  [nic(FIRST_NIC.replace('"user"', `'{"type":"user"}'`))]:
    `vm.nics[0].netdev is "{\\"type\\":\\"user\\"}", ${NETDEV}`,
  [nic('mac = "52:54:00:12:34:56"')]: "vm.nics[0].netdev is missing",
  [nic('mac = "52:54:00:12:34:56"\nnetdev = "user"\nvnetHdr = "on"')]:
    'vm.nics[0].vnetHdr is "on", but must be true or false',
  [`${SMALLEST}[replication]\nmode = "remus"`]:
    'replication.mode is "remus", but must be colo or continuous',
  [`${SMALLEST}[replication]\nperiod = "adaptive"`]:
    'replication.period is "adaptive", but must be a whole number from 10 to 600000',
  [`${SMALLEST}[replication]\nmode = "continuous"\nperiod = "often"`]:
    'replication.period is "often", but must be a whole number from 10 to 600000 or "adaptive"',
  [`${SMALLEST}[replication]\nmode = "continuous"\nmicroPeriod = 20`]:
    "replication.microPeriod has no use where nothing is loaded: leave it out in mode continuous",
  [`${SMALLEST}[replication]\nperiod = 5`]:
    "replication.period is 5, but must be a whole number from 10 to 600000",
  [`${SMALLEST}[replication]\nperiod = 100\nminInterval = 101`]:
    "replication.minInterval is 101, but must not exceed replication.period, which is 100",
  [`${SMALLEST}[replication]\nperiod = 100\nmicroPeriod = 100`]:
    "replication.microPeriod is 100, but must be shorter than replication.period, which is 100",
  [`${SMALLEST}[replication]\nmicroPeriod = 30\nminInterval = 31`]:
    "replication.minInterval is 31, but must not exceed replication.microPeriod, which is 30",
  [`${SMALLEST}[replication]\nmicroPeriod = -1`]:
    "replication.microPeriod is -1, but must be a whole number from 0 to 600000",
  [`${SMALLEST}[replication]\npeer = 7700`]: "replication.peer must be a text",
  [`${SMALLEST}[replication]\npeer = "7700"`]:
    'replication.peer is "7700": write it as 127.0.0.1:7700, [::1]:7700 or unix:/path',
  [`${SMALLEST}[replication]\nlisten = "127.0.0.256:1"`]:
    'replication.listen is "127.0.0.256:1": write it as 127.0.0.1:7700, [::1]:7700 or unix:/path',
  [`${SMALLEST}[replication]\nlisten = "unix:/${"x".repeat(107)}"`]:
    `replication.listen is "unix:/${
      "x".repeat(92)
    }\u2026: its path has 108 bytes, the system takes 107`,
  [`${SMALLEST}[replication]\nlisten = "unix:${"x".repeat(98)}"`]: `replication.listen is "unix:${
    "x".repeat(93)
  }\u2026: its path has 108 bytes, the system takes 107`,
  [`${SMALLEST}[replication]\npeer = "10.0.0.2:7700"`]:
    'replication.peer is "10.0.0.2:7700": the link is not encrypted, so only loopback addresses ' +
    "(127.0.0.1, [::1]) and unix sockets are taken; on a network that you trust, set " +
    'replication.encryption = "none"',
  [`${SMALLEST}[replication]\nencryption = "tls"`]:
    'replication.encryption is "tls", but must be none',
};

for (const [text, detail] of Object.entries(REFUSED)) {
  const shown = JSON.stringify(text.replace(SMALLEST, "... ")).slice(0, 70);
  Deno.test(`parseVmConfig refuses ${shown}`, () => {
    const { message } = assertThrows(() => parseVmConfig(text, PATH), ConfigError);
    assertEquals(message, `Cannot use ${PATH}: ${detail}`);
  });
}

/** What is given twice in each text, and where. */
const TWICE: Readonly<Record<string, string>> = {
  "[vm]\ncpus = 1\n\ncpus = 2": "cpus is given twice, on lines 2 and 4",
  "[vm]\ncpus = 1\n 'cpus'= 2": "cpus is given twice, on lines 2 and 3",
  'vm.name = "a"\nvm . "name" = "b"': "vm.name is given twice, on lines 1 and 2",
  '[vm]\nextraArgs = [\n "-S",\n]\nextraArgs = []': "extraArgs is given twice, on lines 2 and 5",
  "[vm]\ncpus = 1\n[qemu]\n[vm] # more\nname = 1": "[vm] is given twice, on lines 1 and 4",
  '[vm]\nappend = """\\\ncpus=1 \\\n"""\ncpus = 1\ncpus = 2':
    "cpus is given twice, on lines 5 and 6",
};

for (const [text, detail] of Object.entries(TWICE)) {
  Deno.test(`parseVmConfig says that ${detail}`, () => {
    const { message } = assertThrows(() => parseVmConfig(text, PATH), ConfigError);
    assertEquals(message, `Cannot use ${PATH}: ${detail}`);
  });
}

Deno.test("parseVmConfig takes for a duplicate only what is one", () => {
  const text = `[vm]
name = "web1"
memory = 256
kernel = "vmlinuz"
append = """\\
console=ttyS0 \\
console=tty0 \\
memory=9 cpus=1 \\
cpus=9"""
cpus = 2
# cpus = 3
extraArgs = [
  "-a", "x=1",
  "-a", "x=1",
]
[[vm.nics]]
mac = "52:54:00:12:34:56"
netdev = "user"
[[vm.nics]]
mac = "52:54:00:12:34:57"
netdev = "user"
`;
  const { vm } = parseVmConfig(text, PATH);
  assertEquals(vm.append, "console=ttyS0 console=tty0 memory=9 cpus=1 cpus=9");
  assertEquals([vm.cpus, vm.nics.length, vm.extraArgs.length], [2, 2, 4]);
});

Deno.test("parseVmConfig takes QEMU's own versioned machines of x86", () => {
  for (const machine of ["pc-i440fx-11.1", "pc-q35-7.2", "pc-q35-4.0.1"]) {
    const text = `${SMALLEST}machine = "${machine}"`;
    assertEquals(parseVmConfig(text, PATH).vm.machine, machine);
  }
});

Deno.test("parseVmConfig lowers minInterval with a short period or microPeriod", () => {
  const { replication } = parseVmConfig(`${SMALLEST}[replication]\nperiod = 15`, PATH);
  assertEquals([replication.periodMs, replication.minIntervalMs], [15, 15]);
  const micro = parseVmConfig(`${SMALLEST}[replication]\nmicroPeriod = 10`, PATH).replication;
  assertEquals([micro.microPeriodMs, micro.minIntervalMs], [10, 10]);
});

Deno.test("parseVmConfig takes a relative unix socket from the file's directory", () => {
  const text = `${SMALLEST}[replication]\npeer = "unix:../run/a.sock"\nlisten = "unix:/run/b"`;
  const { peer, listen } = parseVmConfig(text, PATH).replication;
  assertEquals(peer, { transport: "unix", path: "/srv/run/a.sock" });
  assertEquals(listen, { transport: "unix", path: "/run/b" });
});

Deno.test("parseVmConfig takes a comma in a netdev for what it is to QEMU", () => {
  const { nics } = parseVmConfig(nic(FIRST_NIC.replace("user", "tap,ifname=a,,id=b")), PATH).vm;
  assertEquals(nics[0]?.netdev, "tap,ifname=a,,id=b");
});

Deno.test("parseVmConfig says in one line where a text is no TOML", () => {
  const { message } = assertThrows(() => parseVmConfig("[vm]\nname = \n", PATH), ConfigError);
  assert(message.startsWith(`Cannot read ${PATH}: it is no TOML: Parse error on line`), message);
  assert(!message.includes("\n"));
});

Deno.test("parseVmConfig gives a config or a ConfigError for any text", () => {
  const key = fc.constantFrom("name", "memory", "kernel", "cpus", "disks", "nics", "x", '"\\n"');
  const value = fc.constantFrom('"a"', "1", "-1", "nan", "[]", "[[]]", "{}", "[{}]", "true", '""');
  const entry = fc.tuple(key, value).map(([key, value]) => `${key} = ${value}`);
  const header = fc.constantFrom("[vm]", "[[vm]]", "[[vm.nics]]", "[vm.disks]", "[replication]");
  const text = fc.array(fc.oneof(entry, header, fc.string({ maxLength: 8 })), { maxLength: 12 });
  fc.assert(
    fc.property(text, (lines) => {
      try {
        parseVmConfig(lines.join("\n"), PATH);
      } catch (error) {
        assert(error instanceof ConfigError, String(error));
      }
    }),
    { numRuns: 1000 },
  );
});

Deno.test("parseVmConfig takes addresses of other hosts when encryption is none", () => {
  const text = `${SMALLEST}[replication]\nencryption = "none"\npeer = "10.0.0.2:7700"`;
  const { replication } = parseVmConfig(text, PATH);
  assertEquals(replication.encryption, "none");
  assertEquals(replication.peer, { transport: "tcp", hostname: "10.0.0.2", port: 7700 });
});

Deno.test("requirePeer and requireListen give the address, or name the missing key", () => {
  const text = `${SMALLEST}[replication]\npeer = "[::1]:1"\nlisten = "unix:/run/a"`;
  const config = parseVmConfig(text, PATH);
  assertEquals(requirePeer(config), { transport: "tcp", hostname: "::1", port: 1 });
  assertEquals(requireListen(config), { transport: "unix", path: "/run/a" });
  const bare = parseVmConfig(SMALLEST, PATH);
  assertThrows(() => requirePeer(bare), ConfigError, `${PATH}: replication.peer is missing`);
  assertThrows(() => requireListen(bare), ConfigError, `${PATH}: replication.listen is missing`);
});
