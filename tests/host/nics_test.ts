import { assertEquals, assertRejects } from "@std/assert/mod.js";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { QemuError } from "../../engine/errors.ts";
import { filteredNics, NicPlugs } from "../../engine/host/nics.ts";

function config(nics: string, path = "/etc/colo/a.toml") {
  return parseVmConfig(`[vm]\nname = "web1"\nmemory = 256\nkernel = "k"\n${nics}`, path);
}

const nic = (mac: number, lines: string) =>
  `[[vm.nics]]\nmac = "52:54:00:00:00:0${mac}"\n${lines}\n`;

Deno.test("filteredNics has a vnet header on taps alone", () => {
  const { vm } = config(
    nic(1, 'netdev = "user"\nvnetHdr = true') +
      nic(2, 'netdev = "tap,ifname=t0"\nvnetHdr = true') + nic(3, 'netdev = "tap,ifname=t1"'),
  );
  const facts = filteredNics({ vm } as Parameters<typeof filteredNics>[0])
    .map(({ id, vnetHeader }) => [id, vnetHeader]);
  assertEquals(facts, [["nic0", false], ["nic1", true], ["nic2", false]]);
});

Deno.test("NicPlugs calls a card's script with what it is about", async () => {
  const directory = Deno.makeTempDirSync();
  try {
    const script = `${directory}/plug.sh`;
    Deno.writeTextFileSync(script, `#!/bin/sh\necho "$@" >>${directory}/log\n`);
    Deno.chmodSync(script, 0o755);
    const plugs = new NicPlugs(config(
      nic(1, `netdev = "user"\nscript = "${script}"`) + nic(2, 'netdev = "user"'),
    ));
    assertEquals(await plugs.remove(), []);
    await plugs.install("secondary");
    await plugs.failOver();
    assertEquals(await plugs.remove(), []);
    assertEquals(await plugs.remove(), []);
    assertEquals(Deno.readTextFileSync(`${directory}/log`).trim().split("\n"), [
      "install secondary web1 nic0 - -",
      "failover secondary web1 nic0 - -",
      "remove secondary web1 nic0 - -",
    ]);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("NicPlugs says in one sentence what went wrong", async () => {
  const missing = new NicPlugs(config(nic(1, 'netdev = "user"\nscript = "/no/such/script"')));
  await assertRejects(() => missing.install("primary"), QemuError, "Cannot run /no/such/script");
  const noTap = new NicPlugs(
    config(nic(1, 'netdev = "tap,ifname=colo-none"\nbridge = "colo-none-br"')),
  );
  await assertRejects(() => noTap.failOver(), QemuError, "Cannot put colo-none into bridge");
});
