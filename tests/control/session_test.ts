import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  type CommandArguments,
  ControlSession,
  type SessionEffect,
} from "../../engine/control/mod.ts";
import { CONTROL_OBJECT_BYTES_MAX } from "../../engine/limits.ts";

const text = (value: string) => new TextEncoder().encode(value);
const NEGOTIATE = '{"execute": "qmp_capabilities"}';

function session(): ControlSession {
  return new ControlSession({
    "colo-test": {
      arguments: { "name": "string", "count?": "integer", "now?": "boolean" },
      run: () => undefined,
    },
  }, "1.2.3");
}

/** What a client that has negotiated hears. */
function hear(input: string, negotiated = true): SessionEffect[] {
  const tested = session();
  if (negotiated) tested.push(text(NEGOTIATE));
  return tested.push(text(input));
}

function refusal(description: string, id?: unknown, errorClass = "GenericError") {
  const error = { class: errorClass, desc: description };
  return [{ type: "write" as const, message: { error, ...(id === undefined ? {} : { id }) } }];
}

Deno.test("a client is greeted as by QEMU", () => {
  assertEquals(session().greeting(), {
    QMP: {
      version: { qemu: { major: 1, minor: 2, micro: 3 }, package: "colo" },
      capabilities: [],
    },
  });
});

Deno.test("nothing is done before capabilities are negotiated", () => {
  const tested = session();
  const early = '{"execute": "colo-test", "arguments": {"name": "a"}, "id": 1}';
  const expected = refusal(
    "Expecting capabilities negotiation with 'qmp_capabilities'",
    1,
    "CommandNotFound",
  );
  assertEquals<unknown>(tested.push(text(early)), expected);
  assertEquals<unknown>(tested.push(text('{"execute": "qmp_capabilities", "id": "x"}')), [
    { type: "write", message: { return: {}, id: "x" } },
  ]);
  const [effect] = tested.push(text(early));
  assert(effect?.type === "run");
  assertEquals<CommandArguments>(effect.args, { name: "a" });
  assertEquals(effect.id, 1);
});

Deno.test("what makes no sense is answered with a reason", () => {
  const cases: readonly [string, ReturnType<typeof refusal>][] = [
    ["hello\n", refusal("JSON parse error, expecting an object")],
    ["[1]\n", refusal("JSON parse error, expecting an object")],
    ["{]", refusal("JSON parse error, this is no JSON")],
    ['{"a" 1}', refusal("JSON parse error, this is no JSON")],
    ["{".repeat(2) + "[".repeat(70), refusal("JSON parse error, nested deeper than 64")],
    ["{}", refusal("QMP input lacks member 'execute'")],
    ['{"execute": 1, "id": 2}', refusal("QMP input lacks member 'execute'", 2)],
    ['{"execute": "a", "x": 1}', refusal("QMP input member 'x' is unexpected")],
    [
      '{"execute": "colo-test", "arguments": [1]}',
      refusal("QMP input member 'arguments' must be an object"),
    ],
    [
      '{"execute": "quit"}',
      refusal("The command quit has not been found", undefined, "CommandNotFound"),
    ],
    [
      '{"execute": "constructor"}',
      refusal("The command constructor has not been found", undefined, "CommandNotFound"),
    ],
    [
      NEGOTIATE,
      refusal(
        "Capabilities negotiation is already complete, command ignored",
        undefined,
        "CommandNotFound",
      ),
    ],
    ['{"execute": "colo-test"}', refusal("Parameter 'name' is missing")],
    [
      '{"execute": "colo-test", "arguments": {"name": 1}}',
      refusal("Invalid parameter type for 'name', expected: string"),
    ],
    [
      '{"execute": "colo-test", "arguments": {"name": "a", "count": 1.5}}',
      refusal("Invalid parameter type for 'count', expected: integer"),
    ],
    [
      '{"execute": "colo-test", "arguments": {"name": "a", "other": 1}}',
      refusal("Parameter 'other' is unexpected"),
    ],
  ];
  for (const [input, expected] of cases) assertEquals<unknown>(hear(input), expected, input);
});

Deno.test("a client that goes wrong is heard again from the next line on", () => {
  const long = `{"x": "${"y".repeat(CONTROL_OBJECT_BYTES_MAX)}`;
  for (const rubbish of ["what?", "}", '"text"', long, "[".repeat(9)]) {
    const effects = hear(`${rubbish} {} {"execute"\n{"execute": "query-version", "id": 5}`);
    assertEquals(effects.length, 2, rubbish.slice(0, 20));
    assert(effects[1]?.type === "run" && effects[1].id === 5);
  }
});

Deno.test("commands come in any pieces and any layout", () => {
  const input = [
    NEGOTIATE,
    '{"execute":\n "colo-test", "arguments": {"name": "a}\\"{[b", "now": true}}',
    '{"execute": "query-commands", "id": {"deep": [1]}}',
  ].join("");
  const whole = session().push(text(input));
  assertEquals(whole.map(({ type }) => type), ["write", "run", "run"]);
  fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }), (sizes) => {
    const tested = session();
    const bytes = text(input);
    const effects: SessionEffect[] = [];
    for (let at = 0, turn = 0; at < bytes.length; turn++) {
      const size = sizes[turn % sizes.length]!;
      effects.push(...tested.push(bytes.subarray(at, at + size)));
      at += size;
    }
    assertEquals(JSON.stringify(effects), JSON.stringify(whole));
  }));
});

Deno.test("query-commands lists what there is", () => {
  const [effect] = hear('{"execute": "query-commands"}');
  assert(effect?.type === "run");
  assertEquals<unknown>(effect.command.run({}), [
    { name: "colo-test" },
    { name: "query-commands" },
    { name: "query-version" },
  ]);
});

Deno.test("no bytes do worse than being refused", () => {
  const pieces = fc.array(fc.oneof(
    fc.uint8Array({ maxLength: 30 }),
    fc.constantFrom("{", "}", "[", "]", '"', "\\", "\n", '{"execute":', NEGOTIATE).map(text),
    fc.json().map((json) => text(`{"execute": "colo-test", "arguments": ${json}}`)),
  ));
  fc.assert(fc.property(pieces, (pieces) => {
    const tested = session();
    for (const piece of pieces) {
      for (const effect of tested.push(piece)) {
        if (effect.type === "write") JSON.stringify(effect.message);
        else assert(typeof effect.command.run === "function");
      }
    }
  }));
});
