import { assertEquals } from "@std/assert/mod.js";
import { escapeCommas, type MachineDescription, qemuArgs } from "../../engine/vm/command_line.ts";

const BARE: MachineDescription = {
  name: "bare",
  machine: "pc",
  accel: "kvm",
  memoryMiB: 64,
  cpus: 2,
  disks: [],
  nics: [],
  qmpPath: "/run/qmp",
  incoming: false,
  extraArgs: [],
};

Deno.test("qemuArgs() writes a machine with nothing in it", () => {
  assertEquals(qemuArgs(BARE), [
    ...["-name", "guest=bare"],
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...["-machine", "pc,accel=kvm,suppress-vmdesc=on"],
    ...["-m", "size=64M"],
    ...["-smp", "cpus=2"],
    ...["-chardev", "null,id=console", "-serial", "chardev:console"],
    ...["-chardev", "socket,id=qmp,path=/run/qmp,server=on,wait=off"],
    ...["-qmp", "chardev:qmp"],
  ]);
});

Deno.test("qemuArgs() writes a machine with everything in it", () => {
  const args = qemuArgs({
    name: "web, first",
    machine: "pc-i440fx-11.1",
    accel: "tcg",
    memoryMiB: 128,
    cpus: 1,
    kernelPath: "/guest/a,b/vmlinuz",
    initrdPath: "/guest/initrd",
    append: "console=ttyS0,115200 quiet",
    disks: [
      { path: "/disks/one,two.raw", format: "raw" },
      { path: "/disks/three.qcow2", format: "qcow2" },
    ],
    nics: [
      {
        id: "hn0",
        mac: "52:54:00:12:34:56",
        netdev: "user,hostfwd=tcp:127.0.0.1:8080-:80",
        model: "virtio-net-pci",
      },
      {
        id: "hn1",
        mac: "52:54:00:12:34:57",
        netdev: "tap,ifname=tap0,script=no,downscript=no",
        model: "virtio-net-pci",
        vnetHdr: false,
      },
    ],
    consolePath: "/run/a,b/console",
    qmpPath: "/run/a,b/qmp",
    incoming: true,
    extraArgs: ["-device", "virtio-rng-pci"],
  });
  assertEquals(args, [
    ...["-name", "guest=web,, first"],
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...["-machine", "pc-i440fx-11.1,accel=tcg,suppress-vmdesc=on"],
    ...["-m", "size=128M"],
    ...["-smp", "cpus=1"],
    ...["-kernel", "/guest/a,b/vmlinuz"],
    ...["-initrd", "/guest/initrd"],
    ...["-append", "console=ttyS0,115200 quiet"],
    ...[
      "-blockdev",
      "driver=raw,node-name=disk0,file.driver=file,file.filename=/disks/one,,two.raw",
    ],
    ...["-device", "virtio-blk-pci,id=disk0-device,drive=disk0"],
    ...[
      "-blockdev",
      "driver=qcow2,node-name=disk1,file.driver=file,file.filename=/disks/three.qcow2",
    ],
    ...["-device", "virtio-blk-pci,id=disk1-device,drive=disk1"],
    ...["-netdev", "user,hostfwd=tcp:127.0.0.1:8080-:80,id=hn0"],
    ...["-device", "virtio-net-pci,id=hn0-device,netdev=hn0,mac=52:54:00:12:34:56,romfile="],
    ...["-netdev", "tap,ifname=tap0,script=no,downscript=no,id=hn1,vnet_hdr=off"],
    ...["-device", "virtio-net-pci,id=hn1-device,netdev=hn1,mac=52:54:00:12:34:57,romfile="],
    ...["-chardev", "file,id=console,path=/run/a,,b/console", "-serial", "chardev:console"],
    ...["-chardev", "socket,id=qmp,path=/run/a,,b/qmp,server=on,wait=off"],
    ...["-qmp", "chardev:qmp"],
    ...["-incoming", "defer"],
    ...["-device", "virtio-rng-pci"],
  ]);
});

Deno.test("qemuArgs() gives both sides of a pair the same devices in the same order", () => {
  const devices = (incoming: boolean) => qemuArgs({ ...BARE, incoming }).slice(2, 14);
  assertEquals(devices(true), devices(false));
});

Deno.test("qemuArgs() turns the virtio-net header on only for a tap", () => {
  const nic = { id: "hn0", mac: "52:54:00:12:34:56", model: "virtio-net-pci", vnetHdr: true };
  const netdev = (value: string) =>
    qemuArgs({ ...BARE, nics: [{ ...nic, netdev: value }] }).find((arg) => arg.includes("id=hn0"));
  assertEquals(netdev("tap"), "tap,id=hn0,vnet_hdr=on");
  assertEquals(netdev("user"), "user,id=hn0");
});

Deno.test("escapeCommas() doubles every comma", () => {
  assertEquals(escapeCommas("a,b,,c"), "a,,b,,,,c");
});

Deno.test("qemuArgs() keeps what a console has shown when the same VM goes on", () => {
  const chardev = (machine: MachineDescription) =>
    qemuArgs(machine).find((argument) => argument.startsWith("file,id=console"));
  const machine = { ...BARE, consolePath: "/run/console" };
  assertEquals(chardev(machine), "file,id=console,path=/run/console");
  assertEquals(
    chardev({ ...machine, consoleAppend: true }),
    "file,id=console,path=/run/console,append=on",
  );
});

Deno.test("qemuArgs() has the main memory in a file where one is named", () => {
  const args = qemuArgs({ ...BARE, memoryPath: "/dev/shm/a,b/image-1" });
  assertEquals(args.slice(args.indexOf("-machine"), args.indexOf("-smp")), [
    ...["-machine", "pc,accel=kvm,suppress-vmdesc=on,memory-backend=pc.ram"],
    ...["-m", "size=64M"],
    "-object",
    "memory-backend-file,id=pc.ram,mem-path=/dev/shm/a,,b/image-1,share=on,size=64M",
  ]);
});
