/**
 * Which QEMU can take which side of COLO, and with which capabilities: one table and its reading.
 *
 * COLO has been in QEMU since 4.0, but most releases cannot be a *primary* under TCG, and some under
 * no accelerator: a primary of 7.2 or 10.0.13 deadlocks in its first checkpoint under TCG (the big
 * lock is lost in a dirty-log sync), one of 10.0.0 to 10.0.2 completes the migration instead of
 * entering the `colo` state. A guest must never hang for that, so an unsuitable QEMU is refused
 * before it starts. Releases between the tried ones are judged by the worse neighbour.
 *
 * Pure: facts in, verdict out.
 *
 * @module
 */

/** What runs the guest's instructions: QEMU's translator, or the processor through KVM. */
export type Accelerator = "tcg" | "kvm";

/** The two sides of COLO. */
export type Role = "primary" | "secondary";

/** What must be known about a QEMU to judge it. */
export interface QemuFacts {
  /** `query-version`, or what `--version` prints: the first `N.N.N` in it counts */
  readonly version: string;
  /** Names of the migration capabilities it knows (`query-migrate-capabilities`) */
  readonly capabilities: readonly string[];
  /** What it is going to run with */
  readonly accel: Accelerator;
}

/** Whether a QEMU can take one side, and why: a clause for a sentence, without a full stop. */
export interface RoleVerdict {
  readonly ok: boolean;
  readonly reason: string;
}

/** The verdict for each side. */
export type Suitability = Readonly<Record<Role, RoleVerdict>>;

type Version = readonly [major: number, minor: number, micro: number];

interface Row {
  readonly from: Version;
  readonly tcg: RoleVerdict;
  readonly kvm: RoleVerdict;
}

const yes = (reason: string): RoleVerdict => ({ ok: true, reason });
const no = (reason: string): RoleVerdict => ({ ok: false, reason });

const WORKS = yes("works");
const EXPECTED = yes("expected to work under KVM");
const UNTRIED = no("this release has not been tried as a COLO primary");
const DEADLOCKS = no("it deadlocks in its first checkpoint under TCG");
const NEVER_COLO = no("its migration completes instead of entering COLO");

/** As a primary: each row holds up to the next one's `from`. */
const PRIMARY_ROWS: readonly Row[] = [
  { from: [0, 0, 0], tcg: UNTRIED, kvm: UNTRIED },
  { from: [7, 0, 0], tcg: DEADLOCKS, kvm: EXPECTED },
  { from: [10, 0, 0], tcg: NEVER_COLO, kvm: NEVER_COLO },
  { from: [10, 0, 3], tcg: UNTRIED, kvm: UNTRIED },
  { from: [10, 0, 13], tcg: DEADLOCKS, kvm: EXPECTED },
  { from: [10, 1, 0], tcg: UNTRIED, kvm: UNTRIED },
  { from: [11, 0, 0], tcg: WORKS, kvm: WORKS },
];

const SECONDARY_FROM: Version = [7, 0, 0];
const RETURN_PATH_FROM: Version = [11, 0, 0];

/**
 * Judge a QEMU for both sides of COLO.
 *
 * @example
 * ```ts
 * import { judgeQemu } from "./suitability.ts";
 *
 * const capabilities = ["return-path", "x-colo"];
 * const old = judgeQemu({ version: "7.2.22", capabilities, accel: "tcg" });
 * if (old.primary.ok || !old.secondary.ok) throw new Error("7.2 can only be a secondary under TCG");
 * ```
 */
export function judgeQemu(facts: QemuFacts): Suitability {
  const version = parseVersion(facts.version);
  if (version === undefined) return both(no(`its version "${facts.version}" is not understood`));
  const missing = coloCapabilities(facts.version)
    .filter((name) => !facts.capabilities.includes(name));
  if (missing.length > 0) {
    return both(no(`it was built without the migration capability ${missing.join(" and ")}`));
  }
  const row = PRIMARY_ROWS.findLast((candidate) => !isBefore(version, candidate.from));
  return {
    primary: row?.[facts.accel] ?? UNTRIED,
    secondary: isBefore(version, SECONDARY_FROM)
      ? no("this release has not been tried as a COLO secondary")
      : WORKS,
  };
}

/**
 * The migration capabilities to set on *both* sides, in the order to set them.
 *
 * QEMU 11 refuses `x-colo` without `return-path`; older releases fail with it.
 *
 * @param version The primary's version
 */
export function coloCapabilities(version: string): readonly string[] {
  const parsed = parseVersion(version);
  const old = parsed !== undefined && isBefore(parsed, RETURN_PATH_FROM);
  return old ? ["x-colo"] : ["return-path", "x-colo"];
}

/** The first `N.N` or `N.N.N` in a text, as numbers. */
export function parseVersion(text: string): Version | undefined {
  const match = /(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?/.exec(text);
  if (match === null) return undefined;
  return [Number(match[1]), Number(match[2]), Number(match[3] ?? 0)];
}

function isBefore(a: Version, b: Version): boolean {
  if (a[0] !== b[0]) return a[0] < b[0];
  if (a[1] !== b[1]) return a[1] < b[1];
  return a[2] < b[2];
}

function both(verdict: RoleVerdict): Suitability {
  return { primary: verdict, secondary: verdict };
}
