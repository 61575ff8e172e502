import { Refusal } from "../errors.ts";

/** Where a page ended: the sort key of its last item, as text. */
export type Position = readonly string[];

const VERSION = "1";

/**
 * The opaque cursor for `position` in the list named `list`. It is bound to the list and to `scope` (the filters), so
 * that it cannot be used to go on in another one.
 */
export function formatCursor(list: string, scope: string, position: Position): string {
  return Buffer.from(JSON.stringify([VERSION, list, scope, ...position])).toString("base64url");
}

/**
 * The position that a cursor stands for, or undefined for the empty cursor.
 *
 * @throws Refusal FIELD_INVALID when the cursor is not one of this list with these filters.
 */
export function parseCursor(list: string, scope: string, cursor: string): Position | undefined {
  if (cursor === "") return undefined;
  const parts = decode(cursor);
  if (parts === undefined || parts[0] !== VERSION || parts[1] !== list) {
    throw invalidCursor();
  }
  if (parts[2] !== scope) throw Refusal.field("cursor", "belongs to a list with other filters");
  return parts.slice(3);
}

/** The refusal of a cursor that no page of the list can have given. */
export function invalidCursor(): Refusal {
  return Refusal.field("cursor", "must be the next_cursor of an earlier page of this list");
}

function decode(cursor: string): string[] | undefined {
  try {
    const parts: unknown = JSON.parse(Buffer.from(cursor, "base64url").toString());
    // A caller can make a cursor, so its texts are checked to be such as the database takes.
    return Array.isArray(parts) && parts.length > 3 && parts.every(isStorableText) ? parts : undefined;
  } catch {
    return undefined;
  }
}

function isStorableText(part: unknown): part is string {
  return typeof part === "string" && part.isWellFormed() && !part.includes("\0");
}
