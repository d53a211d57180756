/**
 * Which Debian mirror this machine uses: read from apt's source lists, both formats.
 *
 * A machine's own mirror is near, and perhaps the only one it can reach. A wrong guess is harmless:
 * whatever a mirror sends must be signed by Debian, and the standard mirror is tried after it.
 *
 * Formats: sources.list(5), "one-line-style" and "deb822-style".
 *
 * @module
 */

/** The mirror to use where none is configured, or none works. */
export const STANDARD_MIRROR = "http://deb.debian.org/debian";

/** One file of apt's configuration. */
export interface SourceFile {
  /** Decides the format: `*.sources` is deb822, anything else one-line */
  readonly name: string;
  readonly text: string;
}

/**
 * The Debian mirrors in apt's source lists, in their order, the standard one last.
 *
 * @example
 * ```ts
 * import { debianMirrors } from "./debian_sources.ts";
 *
 * const text = "deb [arch=amd64] http://ftp.example/debian/ bookworm main\n";
 * const mirrors = debianMirrors([{ name: "sources.list", text }]);
 * if (mirrors[0] !== "http://ftp.example/debian") throw new Error("not found");
 * ```
 */
export function debianMirrors(files: readonly SourceFile[]): readonly string[] {
  const found = files.flatMap(({ name, text }) =>
    name.endsWith(".sources") ? deb822Uris(text) : oneLineUris(text)
  );
  const mirrors = found.map((uri) => uri.replace(/\/+$/, "")).filter(isDebianArchive);
  return [...new Set([...mirrors, STANDARD_MIRROR])];
}

/**
 * Debian's archive is served under `/debian` at the root of a host; other projects publish packages
 * *for* Debian under longer paths, or beside a suite of their own. Cloud images name a file that
 * lists mirrors instead.
 */
function isDebianArchive(uri: string): boolean {
  return /^https?:\/\/[^/]+\/debian$/.test(uri) ||
    /^mirror\+file:\/.*\/debian\.list$/.test(uri);
}

function oneLineUris(text: string): string[] {
  return text.split("\n").flatMap((line) => {
    const match = /^\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+\S/.exec(line.replace(/#.*/, ""));
    return match?.[1] === undefined ? [] : [match[1]];
  });
}

function deb822Uris(text: string): string[] {
  const lines = text.split("\n").filter((line) => !line.startsWith("#"));
  return lines.join("\n").split(/\n\s*\n/).flatMap((paragraph) => {
    const fields = deb822Fields(paragraph);
    const types = fields.get("types") ?? "";
    if (!types.split(/\s+/).includes("deb") || fields.get("enabled") === "no") return [];
    return (fields.get("uris") ?? "").split(/\s+/).filter((uri) => uri !== "");
  });
}

function deb822Fields(paragraph: string): Map<string, string> {
  const unfolded = paragraph.replace(/\n[ \t]+/g, " ");
  const fields = unfolded.split("\n").flatMap((line): [string, string][] => {
    const colon = line.indexOf(":");
    return colon < 0
      ? []
      : [[line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim()]];
  });
  return new Map(fields);
}
