import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { StoreError } from "../../engine/errors.ts";
import { ImageDirectory, imagePlace } from "../../engine/host/image_directory.ts";

function config(rest = "", path = "/etc/colo/a.toml") {
  return parseVmConfig(
    `[vm]
    name = "web-never-made"
    memory = 256
    kernel = "vmlinuz"
    [replication]
    mode = "continuous"
    ${rest}`,
    path,
  );
}

const MIB = 1024 * 1024;

Deno.test("imagePlace is in memory where there is room, the same at every start", () => {
  const roomy = () => 1024 * MIB;
  const place = imagePlace(config(), roomy);
  assert(place.directory.startsWith("/dev/shm/colo-web-never-made-"), place.directory);
  assertEquals([place.shared, place.notice], [true, undefined]);
  assertEquals(imagePlace(config(), roomy), place);
  // Two standbys for VMs of the same name have a file each.
  const other = imagePlace(config("", "/etc/colo/b.toml"), roomy);
  assert(other.directory !== place.directory);
  assertEquals(imagePlace(config("sharedMemory = false"), roomy).shared, false);
});

Deno.test("imagePlace is on disk, and QEMU's memory its own, where there is no room, and says so", () => {
  const place = imagePlace(config(), () => 300 * MIB);
  assert(place.directory.startsWith("/var/tmp/"), place.directory);
  assertEquals(place.shared, false);
  assert(place.notice?.includes("no room"));
});

Deno.test("imagePlace is where the config says", () => {
  const place = imagePlace(config('stateDirectory = "state"'), () => 0);
  assertEquals(place, { directory: "/etc/colo/state", shared: true });
});

Deno.test("ImageDirectory is one process's, private, and gone when nothing is in it", () => {
  const parent = Deno.makeTempDirSync();
  try {
    const path = `${parent}/a/state`;
    const first = new ImageDirectory(path);
    assertEquals(Deno.statSync(path).mode! & 0o777, 0o700);
    assertThrows(() => new ImageDirectory(path), StoreError, "another standby does");
    const file = first.create("image-1");
    assertEquals(Deno.statSync(`${path}/image-1`).mode! & 0o777, 0o600);
    file.resize(8192);
    file.write(4096, Uint8Array.of(1, 2, 3));
    const read = new Uint8Array(4);
    file.read(4095, read);
    assertEquals(read, Uint8Array.of(0, 1, 2, 3));
    assertThrows(() => file.read(8190, read), StoreError, "the file ends");
    file.close();
    first[Symbol.dispose]();
    const second = new ImageDirectory(path);
    assertEquals(second.open("image-1")?.sizeBytes, 8192);
    assertEquals(second.open("image-2"), undefined);
    second.remove("image-1");
    second.remove("image-1");
    second[Symbol.dispose]();
    assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
  } finally {
    Deno.removeSync(parent, { recursive: true });
  }
});

Deno.test("ImageDirectory closes a directory that others could look into, and takes no other user's", () => {
  const parent = Deno.makeTempDirSync();
  try {
    const open = `${parent}/state`;
    Deno.mkdirSync(open);
    Deno.chmodSync(open, 0o755);
    using _directory = new ImageDirectory(open);
    assertEquals(Deno.statSync(open).mode! & 0o777, 0o700);
  } finally {
    Deno.removeSync(parent, { recursive: true });
  }
  if (Deno.uid() !== 0) assertThrows(() => new ImageDirectory("/root"), StoreError);
});
