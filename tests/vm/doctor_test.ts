import { assert, assertEquals } from "@std/assert/mod.js";
import { diagnose, type Diagnosis, formatDiagnosis } from "../../engine/vm/doctor.ts";

const DIAGNOSIS: Diagnosis = {
  denoVersion: "2.9.6",
  cores: 2,
  memoryMiB: 8000,
  memoryAvailableMiB: 6000,
  accelerator: { accel: "tcg", reason: "the processor shows neither svm nor vmx" },
  qemus: [
    {
      source: "system",
      path: "/usr/bin/qemu-system-x86_64",
      version: "7.2.22",
      suitability: {
        primary: { ok: false, reason: "it deadlocks in its first checkpoint under TCG" },
        secondary: { ok: true, reason: "works" },
      },
    },
  ],
  fetching: { ok: true, reason: "apt-get is there" },
  cache: { directory: "/home/user/.cache/colo", entries: [{ name: "guest", sizeBytes: 3 << 19 }] },
  network: { ip: "/usr/sbin/ip", tc: null, tap: { ok: false, reason: "no /dev/net/tun" } },
};

Deno.test("formatDiagnosis() writes it for people", () => {
  assertEquals(
    formatDiagnosis(DIAGNOSIS),
    `\
Deno         2.9.6
machine      2 cores, 8000 MiB (6000 MiB available)
accelerator  tcg: the processor shows neither svm nor vmx
QEMU         7.2.22 (system) /usr/bin/qemu-system-x86_64
             primary: no, it deadlocks in its first checkpoint under TCG
             secondary: yes, works
fetching     yes, apt-get is there
cache        /home/user/.cache/colo
             guest: 1.5 MiB
network      ip: /usr/sbin/ip, tc: missing
tap devices  no, no /dev/net/tun
primary      runs, after fetching QEMU once (about 45 MB)
secondary    runs with /usr/bin/qemu-system-x86_64
`,
  );
});

Deno.test("formatDiagnosis() says that a named QEMU is not replaced by another", () => {
  const named = { source: "option" as const, path: "/opt/qemu", problem: "Cannot use /opt/qemu" };
  const text = formatDiagnosis({ ...DIAGNOSIS, qemus: [named, ...DIAGNOSIS.qemus] });
  assert(text.includes("secondary    does not run: /opt/qemu was named and cannot\n"));
  assert(text.includes("QEMU         ? (option) /opt/qemu\n             Cannot use /opt/qemu\n"));
});

Deno.test("formatDiagnosis() says what to do where nothing can be fetched", () => {
  const text = formatDiagnosis({
    ...DIAGNOSIS,
    qemus: [],
    fetching: { ok: false, reason: "it has no apt-get" },
  });
  assert(text.includes("QEMU         none found\n"));
  assert(text.includes("primary      does not run: install QEMU 11.1 or newer"));
});

Deno.test("diagnose() describes this machine, and a named QEMU that is not there", async () => {
  const diagnosis = await diagnose({ path: "/nonexistent/qemu" });
  assertEquals(diagnosis.denoVersion, Deno.version.deno);
  assert(diagnosis.cores >= 1 && diagnosis.memoryMiB > 0);
  const [named] = diagnosis.qemus;
  assertEquals(named?.source, "option");
  assert(named?.problem?.includes("/nonexistent/qemu"));
});
