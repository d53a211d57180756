import { assertEquals } from "@std/assert/mod.js";
import { DownloadMeter } from "../../engine/vm/download_meter.ts";

const PREFIX = "fetching QEMU from Debian's packages: ";

Deno.test("DownloadMeter tells the plan and a few steps of a download", () => {
  const meter = new DownloadMeter("QEMU");
  const gets = Array.from(
    { length: 10 },
    (_, index) =>
      `Get:${
        index + 1
      } http://mirror.example/debian sid/main amd64 libx${index} amd64 1.0 [500 kB]`,
  );
  const lines = [
    "Reading package lists...",
    "0 upgraded, 10 newly installed, 0 to remove and 0 not upgraded.",
    "Need to get 2500 kB/5000 kB of archives.",
    ...gets,
    "Fetched 5000 kB in 0s (197 MB/s)",
  ];
  assertEquals(lines.flatMap((line) => meter.push(line) ?? []), [
    `${PREFIX}10 packages, 2500 kB/5000 kB to download`,
    `${PREFIX}2 of 10 packages, 1 MB`,
    `${PREFIX}4 of 10 packages, 2 MB`,
    `${PREFIX}6 of 10 packages, 3 MB`,
    `${PREFIX}8 of 10 packages, 4 MB`,
    `${PREFIX}10 of 10 packages, 5 MB`,
  ]);
});

Deno.test("DownloadMeter adds up all units of size", () => {
  const meter = new DownloadMeter("QEMU");
  const sizes = ["900 B", "99.1 kB", "10.9 MB", "1 GB"];
  const news = sizes.map((size) => meter.push(`Get:1 http://a.example x [${size}]`));
  assertEquals(news.at(-1), `${PREFIX}4 of 0 packages, 1011 MB`);
});
