import { assertEquals } from "@std/assert/mod.js";
import { debianMirrors, STANDARD_MIRROR } from "../../engine/vm/debian_sources.ts";

function mirrorsOf(name: string, text: string): readonly string[] {
  return debianMirrors([{ name, text }]);
}

Deno.test("debianMirrors() falls back to the standard mirror", () => {
  assertEquals(debianMirrors([]), [STANDARD_MIRROR]);
  assertEquals(mirrorsOf("sources.list", "deb http://archive.ubuntu.com/ubuntu noble main\n"), [
    STANDARD_MIRROR,
  ]);
});

Deno.test("debianMirrors() reads the one-line format", () => {
  const text = [
    "# deb http://commented.example/debian bookworm main",
    "deb-src http://source.example/debian bookworm main",
    "deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] https://near.example/debian/ sid main",
    "  deb http://second.example/debian trixie main # why",
    "deb http://near.example/debian-security trixie-security main",
  ].join("\n");
  assertEquals(mirrorsOf("/etc/apt/sources.list", text), [
    "https://near.example/debian",
    "http://second.example/debian",
    STANDARD_MIRROR,
  ]);
});

Deno.test("debianMirrors() reads the deb822 format", () => {
  const text = `Types: deb deb-src
# a comment inside
URIs: http://one.example/debian
 http://two.example/debian/
Suites: bookworm bookworm-updates
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: sid

Types: deb-src
URIs: http://source.example/debian
Suites: sid
`;
  assertEquals(mirrorsOf("/etc/apt/sources.list.d/debian.sources", text), [
    "http://one.example/debian",
    "http://two.example/debian",
    STANDARD_MIRROR,
  ]);
});

Deno.test("debianMirrors() takes the mirror list of a cloud image", () => {
  const text = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\n";
  assertEquals(mirrorsOf("debian.sources", text)[0], "mirror+file:///etc/apt/mirrors/debian.list");
});

Deno.test("debianMirrors() passes over other projects' packages for Debian", () => {
  const text = [
    "deb https://download.example/linux/debian bookworm stable",
    "deb http://snapshot.example/archive/debian/20250520T000000Z bookworm main",
  ].join("\n");
  assertEquals(mirrorsOf("other.list", text), [STANDARD_MIRROR]);
});

Deno.test("debianMirrors() names each mirror once", () => {
  const text = `deb ${STANDARD_MIRROR}/ bookworm main\ndeb ${STANDARD_MIRROR} sid main\n`;
  assertEquals(mirrorsOf("sources.list", text), [STANDARD_MIRROR]);
});
