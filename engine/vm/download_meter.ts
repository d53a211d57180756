/**
 * Progress lines from what `apt-get -q install --download-only` prints in the C locale:
 *
 * ```text
 * 0 upgraded, 73 newly installed, 0 to remove and 0 not upgraded.
 * Need to get 10.1 MB/44.5 MB of archives.
 * Get:1 http://deb.debian.org/debian sid/main amd64 libbz2-1.0 amd64 1.0.8-6 [37.9 kB]
 * ```
 *
 * Pure: lines in, a line worth telling out.
 *
 * @module
 */

/** How many times a download is spoken of, first and last line not counted. */
const REPORTS = 5;

const UNIT_BYTES: Readonly<Record<string, number>> = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };

/** Follows one download. */
export class DownloadMeter {
  readonly #what: string;
  #total = 0;
  #count = 0;
  #sizeBytes = 0;

  /** @param what What is fetched, such as `QEMU` */
  constructor(what: string) {
    this.#what = what;
  }

  /**
   * Take one line of output.
   *
   * @returns A line to show, when there is news
   */
  push(line: string): string | undefined {
    const plan = /(\d+) newly installed/.exec(line);
    if (plan !== null) this.#total = Number(plan[1]);
    const need = /^Need to get (.+) of archives/.exec(line);
    if (need !== null) {
      return `fetching ${this.#what} from Debian's packages: ` +
        `${this.#total} packages, ${need[1]} to download`;
    }
    const size = /^Get:\d+ .*\[([\d.]+) (B|kB|MB|GB)\]$/.exec(line);
    if (size === null) return undefined;
    this.#count += 1;
    this.#sizeBytes += Number(size[1]) * (UNIT_BYTES[size[2] ?? "B"] ?? 1);
    const step = Math.max(1, Math.ceil(this.#total / REPORTS));
    if (this.#count % step !== 0) return undefined;
    return `fetching ${this.#what} from Debian's packages: ` +
      `${this.#count} of ${this.#total} packages, ${Math.round(this.#sizeBytes / 1e6)} MB`;
  }
}
