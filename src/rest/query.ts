import { type DescField, ScalarType } from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { addEntry, type Entries, initOf } from "./entries.ts";
import type { Findings } from "./findings.ts";
import { type FieldPlan, isTimestamp, type MessagePlan, planMessage } from "./message-plan.ts";
import { booleanFromText, bytesFromBase64, enumFromText, numberFromText, stringFrom, Wrong } from "./scalar.ts";
import { timestampFromText } from "./timestamp.ts";

/**
 * Reads query parameters by the descriptor: every accepted name of a field, repeated keys for lists, dots into nested
 * messages. An empty value counts for strings only; for other fields it is as if the key were not there.
 *
 * @throws Refusal FIELDS_CONFLICT when a field has another value already.
 */
export function addQuery(
  query: Iterable<readonly [string, string]>,
  plan: MessagePlan,
  path: ReadonlyMap<FieldPlan, string>,
  entries: Entries,
  findings: Findings,
): void {
  for (const [field, given] of readParameters(query, plan, path, "", findings)) {
    addEntry(entries, field, { at: `query.${given.key}`, value: given.value });
  }
}

interface Given {
  readonly key: string;
  readonly value: unknown;
}

function readParameters(
  query: Iterable<readonly [string, string]>,
  plan: MessagePlan,
  path: ReadonlyMap<FieldPlan, string>,
  prefix: string,
  findings: Findings,
): [FieldPlan, Given][] {
  const found: [FieldPlan, Given][] = [];
  const lists = new Map<FieldPlan, unknown[]>();
  const nested = new Map<FieldPlan, { key: string; query: [string, string][] }>();
  for (const [name, text] of query) {
    const key = prefix + name;
    const dot = name.indexOf(".");
    const field = plan.bySpelling.get(dot === -1 ? name : name.slice(0, dot));
    if (field === undefined || (dot === -1) === isNested(field.desc) || field.desc.fieldKind === "map") {
      findings.unknown(`query.${key}`);
    } else if (dot !== -1) {
      const inner = nested.get(field) ?? { key: key.slice(0, prefix.length + dot), query: [] };
      inner.query.push([name.slice(dot + 1), text]);
      nested.set(field, inner);
    } else if (path.has(field)) {
      if (text !== path.get(field)) findings.overruled(`query.${key}`, field.name);
    } else if (text !== "" || field.desc.scalar === ScalarType.STRING) {
      const value = valueFromText(field, text);
      if (value instanceof Wrong) findings.wrong(key, value);
      else if (field.desc.fieldKind !== "list") found.push([field, { key, value }]);
      else if (lists.has(field)) lists.get(field)?.push(value);
      else {
        const items = [value];
        lists.set(field, items);
        found.push([field, { key, value: items }]);
      }
    }
  }
  for (const [field, inner] of nested) {
    const innerPlan = planMessage(field.desc.message as NonNullable<typeof field.desc.message>);
    const innerEntries: Entries = new Map();
    for (const [innerField, given] of readParameters(inner.query, innerPlan, new Map(), `${inner.key}.`, findings)) {
      addEntry(innerEntries, innerField, { at: `query.${given.key}`, value: given.value });
    }
    found.push([field, { key: inner.key, value: initOf(innerEntries, findings) }]);
  }
  return found;
}

/** Reads the value of a field, or of one item of a list, from the text of a path or a query. */
export function valueFromText(field: FieldPlan, text: string): unknown {
  const { desc } = field;
  if (desc.enum !== undefined) return enumFromText(desc.enum, text);
  if (desc.message !== undefined) {
    if (desc.message.typeName === FieldMaskSchema.typeName) return maskFromText(planMessage(desc.parent), text);
    // A "+" that was not percent-encoded arrives as a space.
    return timestampFromText(text.replace(/(?<=[Tt ]\d{2}:.*) (?=\d{2}:?\d{2}$)/, "+"));
  }
  if (field.contentType !== undefined || field.rawBodyBytes !== undefined)
    return new Wrong("must be given in the body");
  switch (desc.scalar) {
    case ScalarType.STRING:
      return stringFrom(text);
    case ScalarType.BYTES:
      return bytesFromBase64(text);
    case ScalarType.BOOL:
      return booleanFromText(text.replace(/^1$/, "true").replace(/^0$/, "false"));
    default:
      return numberFromText(desc.scalar as ScalarType, text);
  }
}

/** Reads a field mask, `name,retry`, in any accepted names. The result has the contract's names. */
export function maskFromText(plan: MessagePlan, text: string): { paths: string[] } | Wrong {
  const paths: string[] = [];
  for (const name of text.split(",")) {
    const spelling = name.trim();
    if (spelling === "") continue;
    const field = plan.bySpelling.get(spelling);
    if (field === undefined) return new Wrong("must name fields of the request, separated by commas");
    paths.push(field.name);
  }
  return { paths };
}

/** Whether the field is a message that has parameters of its own, with dots. */
function isNested(desc: DescField): boolean {
  const { message } = desc;
  return message !== undefined && !isTimestamp(message) && message.typeName !== FieldMaskSchema.typeName;
}
