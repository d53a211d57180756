/**
 * One table of a TOML file, taken apart key by key: each value is checked as it is taken, and a key
 * that nobody has taken is an error.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";

/** A table and where it stands. */
export class Table {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #taken = new Set<string>();

  /** @param name Its dotted name, such as `vm.nics[0]`; empty for the file itself */
  constructor(
    values: Readonly<Record<string, unknown>>,
    readonly path: string,
    readonly name: string,
  ) {
    this.#values = values;
  }

  /** @throws {ConfigError} always: the key is wrong in this way */
  fail(key: string, detail: string): never {
    throw new ConfigError(`Cannot use ${this.path}: ${this.#dotted(key)} ${detail}`);
  }

  required<T>(key: string, value: T | undefined): T {
    return value ?? this.fail(key, "is missing");
  }

  text(key: string, pattern?: RegExp, allowed?: string): string | undefined {
    const value = this.#take(key);
    if (value === undefined) return undefined;
    if (typeof value !== "string" || value === "") this.fail(key, "must be a text");
    if (pattern !== undefined && !pattern.test(value)) {
      this.fail(key, `is "${value}", but must be ${allowed}`);
    }
    return value;
  }

  integer(key: string, min: number, max: number): number | undefined {
    const value = this.#take(key);
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max) {
      this.fail(key, `is ${show(value)}, but must be a whole number from ${min} to ${max}`);
    }
    return value;
  }

  boolean(key: string): boolean | undefined {
    const value = this.#take(key);
    if (value !== undefined && typeof value !== "boolean") {
      this.fail(key, `is ${show(value)}, but must be true or false`);
    }
    return value;
  }

  choice<Value extends string>(key: string, values: readonly Value[]): Value | undefined {
    const value = this.#take(key);
    if (value === undefined) return undefined;
    const found = values.find((choice) => choice === value);
    return found ?? this.fail(key, `is ${show(value)}, but must be ${values.join(" or ")}`);
  }

  /** An amount of memory: a number of MiB, or a text such as "512MiB" or "6GiB". */
  memoryMiB(key: string, min: number, max: number): number | undefined {
    const value = this.#take(key);
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

  texts(key: string): readonly string[] {
    const value = this.#take(key) ?? [];
    if (!Array.isArray(value)) this.fail(key, "must be a list of texts");
    return value.map((text: unknown) =>
      typeof text === "string" ? text : this.fail(key, "must be a list of texts")
    );
  }

  /** A table within this one; empty when it is not there. */
  table(key: string): Table {
    const value = this.#take(key) ?? {};
    if (!isTable(value)) this.fail(key, `must be a table: [${this.#dotted(key)}]`);
    return new Table(value, this.path, this.#dotted(key));
  }

  /** A list of tables; empty when it is not there. */
  tables(key: string): readonly Table[] {
    const value = this.#take(key) ?? [];
    if (!Array.isArray(value)) this.fail(key, `must be tables: [[${this.#dotted(key)}]]`);
    return value.map((table: unknown, index) => {
      if (!isTable(table)) this.fail(key, `must be tables: [[${this.#dotted(key)}]]`);
      return new Table(table, this.path, `${this.#dotted(key)}[${index}]`);
    });
  }

  /** @throws {ConfigError} when there is a key that was not taken */
  end(): void {
    const unknown = Object.keys(this.#values).find((key) => !this.#taken.has(key));
    if (unknown === undefined) return;
    const nearest = [...this.#taken].sort((a, b) => distance(unknown, a) - distance(unknown, b))[0];
    const close = nearest !== undefined && distance(unknown, nearest) <= 3;
    const known = [...this.#taken].join(", ");
    this.fail(unknown, `is not known${close ? `: did you mean ${nearest}` : ` (known: ${known})`}`);
  }

  #take(key: string): unknown {
    this.#taken.add(key);
    return this.#values[key];
  }

  #dotted(key: string): string {
    return this.name === "" ? key : `${this.name}.${key}`;
  }
}

function isTable(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value) &&
    !(value instanceof Date);
}

function show(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
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
