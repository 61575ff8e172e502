import { expect } from "vitest";

/** What a documented field holds. `time` is text such as `2030-01-31T09:00:00.000Z`. */
type Kind = "string" | "number" | "boolean" | "object" | "array" | "time";

/** Documented fields and what they hold. A name that ends in `?` may be absent, but never null. */
export type Shape = Readonly<Record<string, Kind>>;

/** Checks that a JSON object has every documented field with its type. More fields are fine. */
export function expectShape(body: unknown, shape: Shape): void {
  expect(body).toEqual(expect.any(Object));
  const fields = body as Readonly<Record<string, unknown>>;
  for (const [key, kind] of Object.entries(shape)) {
    const name = key.replace(/\?$/, "");
    if (key.endsWith("?") && !Object.hasOwn(fields, name)) continue;
    expect(kindOf(fields[name], kind), `${name} in ${JSON.stringify(body)}`).toBe(kind);
  }
}

/** Checks that none of the fields is in the body. */
export function expectAbsent(body: object, ...names: readonly string[]): void {
  for (const name of names) expect(Object.hasOwn(body, name), `${name} in ${JSON.stringify(body)}`).toBe(false);
}

function kindOf(value: unknown, wanted: Kind): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (wanted === "time" && typeof value === "string") return TIME.test(value) ? "time" : `no time: ${value}`;
  return typeof value;
}

const TIME = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/;
