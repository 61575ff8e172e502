import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatCursor, parseCursor } from "../../src/domain/cursor.ts";
import { formatId, parseId } from "../../src/domain/ids.ts";

describe("an id", () => {
  test("has its prefix and 26 characters, and leads back to what is stored", () => {
    fc.assert(
      fc.property(fc.uuid(), (uuid) => {
        const id = formatId("cron", uuid);
        expect(id).toMatch(/^cron_[0-7][0-9A-HJKMNP-TV-Z]{25}$/);
        expect(parseId("cron", id)).toBe(uuid);
        expect(parseId("cron", `cron_${id.slice(5).toLowerCase()}`)).toBe(uuid);
      }),
    );
  });

  test("sorts as what is stored does", () => {
    fc.assert(
      fc.property(fc.uuid(), fc.uuid(), (a, b) => {
        expect(formatId("run", a) < formatId("run", b)).toBe(a < b);
      }),
    );
  });

  test.each([
    "",
    "ID",
    "cron_",
    "run_01HX0000000000000000000000",
    "cron_81HX0000000000000000000000",
    "cron_U".padEnd(31, "0"),
  ])("that cannot be one is none: %j", (id) => {
    expect(parseId("cron", id)).toBeUndefined();
  });
});

describe("a cursor", () => {
  test("leads back to its position", () => {
    fc.assert(
      fc.property(fc.array(fc.string(), { minLength: 1 }), fc.string(), (position, scope) => {
        expect(parseCursor("queues", scope, formatCursor("queues", scope, position))).toEqual(position);
      }),
    );
  });

  test.each([
    ["of another list", formatCursor("runs", "", ["x"])],
    ["of a list with other filters", formatCursor("queues", "state=failed", ["x"])],
    ["that is made up", "!!!"],
    ["that is JSON and nothing else", Buffer.from("{}").toString("base64url")],
  ])("%s is refused", (_, cursor) => {
    expect(() => parseCursor("queues", "", cursor)).toThrow(expect.objectContaining({ reason: "FIELD_INVALID" }));
  });
});
