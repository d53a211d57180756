/**
 * The engine's version, from the package's own description.
 *
 * @module
 */

import description from "../deno.json" with { type: "json" };

/** Version of this engine, such as `0.1.0`. */
export const ENGINE_VERSION: string = description.version;
