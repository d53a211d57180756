/** Types of `@std/path`, as far as it is used: its npm package brings none. */

export declare function join(path: string | URL, ...paths: string[]): string;
export declare function resolve(...pathSegments: string[]): string;
export declare function dirname(path: string | URL): string;
export declare function basename(path: string | URL, suffix?: string): string;
export declare function relative(from: string, to: string): string;
export declare function isAbsolute(path: string): boolean;
export declare function normalize(path: string | URL): string;
export declare function fromFileUrl(url: string | URL): string;
export declare function toFileUrl(path: string): URL;
