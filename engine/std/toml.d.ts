/** Types of `@std/toml`, as far as it is used: its npm package brings none. */

/** @throws {SyntaxError} when the text is no TOML */
export declare function parse(tomlString: string): Record<string, unknown>;
export declare function stringify(object: Record<string, unknown>): string;
