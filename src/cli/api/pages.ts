import type { DescMessage } from "@bufbuild/protobuf";
import { type Arguments, type Connection, callUnary } from "./client.ts";
import type { Call } from "./contract.ts";
import { parseExactly } from "./exact-json.ts";

/** One answer of REST, or one thing in it, with the digits of its numbers as they came. */
export type Fields = Readonly<Record<string, unknown>>;

/**
 * Gathers the items of a list over all its pages, from the cursor in `args` on. Once it has `maxItems` of them it asks for
 * no more, and gives the cursor to go on with.
 */
export async function callPages(
  connection: Connection,
  call: Call,
  args: Arguments,
  maxItems: number,
): Promise<{ readonly items: readonly Fields[]; readonly cursor?: string }> {
  const name = listOf(call)?.name ?? "items";
  const items: Fields[] = [];
  const others = args.fields.filter(([field]) => field !== "cursor");
  let fields = args.fields;
  for (;;) {
    const page = parseExactly(await callUnary(connection, call, { ...args, fields })) as Fields;
    items.push(...((page[name] ?? []) as Fields[]));
    const next = page["next_cursor"];
    if (typeof next !== "string") return { items };
    if (items.length >= maxItems) return { items, cursor: next };
    fields = [...others, ["cursor", JSON.stringify(next)]];
  }
}

/** The one repeated message of an answer: its items, when it is a list. */
export function listOf({ method }: Call): { readonly name: string; readonly desc: DescMessage } | undefined {
  const lists = method.output.fields.filter((field) => field.fieldKind === "list" && field.message !== undefined);
  const [list, ...others] = lists;
  return list?.message === undefined || others.length > 0 ? undefined : { name: list.name, desc: list.message };
}
