/**
 * One table of a TOML file, taken apart key by key: each value is checked as it is taken, and a key
 * that is not known is refused before any is taken, since a typo in a key that must be there would
 * read as if it were missing.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";

/** A table, the keys that it may have, and where it stands. */
export class Table<Key extends string> {
  readonly #values: Readonly<Record<string, unknown>>;

  /**
   * @param name Its dotted name, such as `vm.nics[0]`; empty for the file itself
   * @throws {ConfigError} when there is a key that is none of `keys`
   */
  constructor(
    values: Readonly<Record<string, unknown>>,
    readonly path: string,
    readonly name: string,
    keys: readonly Key[],
  ) {
    this.#values = values;
    const known: readonly string[] = keys;
    const unknown = Object.keys(values).find((key) => !known.includes(key));
    if (unknown !== undefined) this.#failUnknown(unknown, known);
  }

  /** @throws {ConfigError} always: the key is wrong in this way */
  fail(key: Key, detail: string): never {
    this.#fail(key, detail);
  }

  /** @param advice What to do about it, after a colon */
  required<T>(key: Key, value: T | undefined, advice = ""): T {
    return value ?? this.fail(key, `is missing${advice}`);
  }

  /** @param allowed Which texts are taken, and how to say so */
  text(key: Key, allowed?: Pick<RegExp, "test">, description?: string): string | undefined {
    const value = this.#values[key];
    if (value === undefined) return undefined;
    if (typeof value !== "string" || value === "") this.fail(key, "must be a text");
    this.#checkLine(key, value);
    if (allowed !== undefined && !allowed.test(value)) {
      this.fail(key, `is ${show(value)}, but must be ${description}`);
    }
    return value;
  }

  /** @param others What may stand there besides, for the message */
  integer(key: Key, min: number, max: number, others = ""): number | undefined {
    const value = this.#values[key];
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max) {
      const range = `a whole number from ${min} to ${max}${others}`;
      this.fail(key, `is ${show(value)}, but must be ${range}`);
    }
    return value;
  }

  boolean(key: Key): boolean | undefined {
    const value = this.#values[key];
    if (value !== undefined && typeof value !== "boolean") {
      this.fail(key, `is ${show(value)}, but must be true or false`);
    }
    return value;
  }

  /** Whether it is this very text. */
  is(key: Key, text: string): boolean {
    return this.#values[key] === text;
  }

  choice<Value extends string>(key: Key, values: readonly Value[]): Value | undefined {
    const value = this.#values[key];
    if (value === undefined) return undefined;
    const found = values.find((choice) => choice === value);
    return found ?? this.fail(key, `is ${show(value)}, but must be ${values.join(" or ")}`);
  }

  /** An amount of memory: a number of MiB, or a text such as "512MiB" or "6GiB". */
  memoryMiB(key: Key, min: number, max: number): number | undefined {
    const value = this.#values[key];
    if (value === undefined) return undefined;
    const match = typeof value === "string" ? /^(\d{1,9}) ?(MiB|GiB)$/.exec(value) : null;
    const sizeMiB = match === null ? value : Number(match[1]) * (match[2] === "GiB" ? 1024 : 1);
    if (
      typeof sizeMiB !== "number" || !Number.isInteger(sizeMiB) || sizeMiB < min || sizeMiB > max
    ) {
      this.fail(key, `is ${show(value)}, but must be ${min} to ${max} MiB, such as 512 or "2GiB"`);
    }
    return sizeMiB;
  }

  texts(key: Key): readonly string[] {
    const value = this.#values[key] ?? [];
    if (!Array.isArray(value)) this.fail(key, "must be a list of texts");
    return value.map((text: unknown, index) => {
      if (typeof text !== "string") this.fail(key, "must be a list of texts");
      this.#checkLine(`${key}[${index}]`, text);
      return text;
    });
  }

  /** A table within this one; empty when it is not there. */
  table<Inner extends string>(key: Key, keys: readonly Inner[]): Table<Inner> {
    const value = this.#values[key] ?? {};
    if (!isTable(value)) this.fail(key, `must be a table: [${this.#dotted(key)}]`);
    return new Table(value, this.path, this.#dotted(key), keys);
  }

  /** A list of tables; empty when it is not there. */
  tables<Inner extends string>(key: Key, keys: readonly Inner[]): readonly Table<Inner>[] {
    const value = this.#values[key] ?? [];
    if (!Array.isArray(value)) this.fail(key, `must be tables: [[${this.#dotted(key)}]]`);
    return value.map((table: unknown, index) => {
      if (!isTable(table)) this.fail(key, `must be tables: [[${this.#dotted(key)}]]`);
      return new Table(table, this.path, `${this.#dotted(key)}[${index}]`, keys);
    });
  }

  /** Nothing in the file is more than one line, and a NUL or an escape would harm whoever gets it. */
  #checkLine(key: string, text: string): void {
    if (!/\p{Cc}/u.test(text)) return;
    this.#fail(key, `is ${show(text)}, but must be one line without control characters`);
  }

  #failUnknown(unknown: string, known: readonly string[]): never {
    const [nearest] = known
      .map((key) => ({ key, edits: unknown.length > 64 ? Infinity : distance(unknown, key) }))
      .sort((a, b) => a.edits - b.edits);
    const meant = nearest !== undefined && nearest.edits <= 2 && nearest.edits < unknown.length;
    const advice = meant ? `: did you mean ${nearest.key}` : ` (known: ${known.join(", ")})`;
    this.#fail(/^[\w-]+$/.test(unknown) ? unknown : show(unknown), `is not known${advice}`);
  }

  #fail(key: string, detail: string): never {
    throw new ConfigError(`Cannot use ${this.path}: ${this.#dotted(key)} ${detail}`);
  }

  #dotted(key: string): string {
    return this.name === "" ? key : `${this.name}.${key}`;
  }
}

function isTable(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value) &&
    !(value instanceof Date);
}

const SHOWN_CHARS_MAX = 100;

/** A value as TOML writes it, on one line and not longer than anyone wants to read. */
export function show(value: unknown): string {
  const text = typeof value === "number" && !Number.isFinite(value)
    ? String(value).replace("NaN", "nan").replace("Infinity", "inf")
    : (JSON.stringify(value) ?? String(value)).replaceAll(/\p{Cc}/gu, escaped);
  return text.length > SHOWN_CHARS_MAX ? `${text.slice(0, SHOWN_CHARS_MAX - 1)}\u2026` : text;
}

/** A control character that JSON leaves as it is. */
function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** Levenshtein's edit distance, for "did you mean". */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}
