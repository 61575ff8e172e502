import type { DescMessage } from "@bufbuild/protobuf";
import { TimestampSchema } from "@bufbuild/protobuf/wkt";
import { formatTable } from "../table.ts";
import type { Call } from "./contract.ts";
import { parseExactly } from "./exact-json.ts";
import { type Fields, listOf } from "./pages.ts";

/** Longest text of a cell, in characters. */
const MAX_CELL = 60;

/** The answer as JSON: on a terminal with line breaks, otherwise in one line as it came. */
export function asJson(text: string, forPeople: boolean): string {
  return forPeople ? JSON.stringify(parseExactly(text), undefined, 2) : text;
}

/**
 * The answer as a table: the items of a list as rows, or the fields of one thing. Columns are fields of one value that
 * some row has; second names and what is nested stay out.
 */
export function asTable(call: Call, text: string): string {
  const answer = parseExactly(text) as Fields;
  const list = call.responseBody === undefined ? listOf(call) : undefined;
  if (list === undefined) {
    const desc = call.responseBody?.message ?? call.method.output;
    const rows = plainFields(desc).flatMap((name) => (isEmpty(answer[name]) ? [] : [[name, cell(answer[name])]]));
    return formatTable(["FIELD", "VALUE"], rows);
  }
  const items = (answer[list.name] ?? []) as readonly Fields[];
  const columns = plainFields(list.desc).filter((name) => items.some((item) => !isEmpty(item[name])));
  if (columns.length === 0) return "(none)";
  return formatTable(
    columns.map((name) => name.toUpperCase()),
    items.map((item) => columns.map((name) => cell(item[name]))),
  );
}

function plainFields({ fields }: DescMessage): string[] {
  const isPlain = (field: (typeof fields)[number]): boolean => {
    if (field.fieldKind === "list" || field.fieldKind === "map") return false;
    return field.message === undefined || field.message.typeName === TimestampSchema.typeName;
  };
  return fields.filter(isPlain).map(({ name }) => name);
}

function isEmpty(value: unknown): boolean {
  return value === undefined || value === "";
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g;

/** A value in one line without anything that would drive the terminal. */
function cell(value: unknown): string {
  if (value === undefined) return "";
  const text = (typeof value === "string" ? value : JSON.stringify(value)).replace(CONTROL, " ");
  return text.length > MAX_CELL ? `${text.slice(0, MAX_CELL - 1)}…` : text;
}
