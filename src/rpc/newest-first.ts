import { formatCursor, invalidCursor, parseCursor } from "../domain/cursor.ts";
import { formatId, type IdPrefix, parseId } from "../domain/ids.ts";

/** A list in falling order of ids. */
export interface NewestFirst {
  /** Name of the list, which a cursor is bound to. */
  readonly list: string;
  /** The filters, which a cursor is bound to as well. */
  readonly scope: string;
  readonly prefix: IdPrefix;
}

/** The stored id of the last item of the page before, or undefined for the first page. @throws Refusal FIELD_INVALID */
export function lastIdOf({ list, scope, prefix }: NewestFirst, cursor: string): string | undefined {
  const position = parseCursor(list, scope, cursor);
  if (position === undefined) return undefined;
  const id = parseId(prefix, position[0] ?? "");
  if (id === undefined) throw invalidCursor();
  return id;
}

/** A page of at most `limit` of the rows, which were read with a limit of one more, and the cursor of the next page. */
export function toPage<Row, Item>(
  { list, scope, prefix }: NewestFirst,
  rows: readonly Row[],
  limit: number,
  idOf: (row: Row) => string,
  toItem: (row: Row) => Item,
): { items: Item[]; nextCursor?: string } {
  const items = rows.slice(0, limit).map(toItem);
  const last = rows.length > limit ? rows[limit - 1] : undefined;
  if (last === undefined) return { items };
  return { items, nextCursor: formatCursor(list, scope, [formatId(prefix, idOf(last))]) };
}
