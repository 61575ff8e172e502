import type { DescField, DescMessage } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { HIDDEN } from "../../domain/credentials.ts";
import { parseExactly } from "../api/exact-json.ts";
import type { Fields } from "../api/pages.ts";
import { EnvironmentText } from "./environment-text.ts";
import { type Declared, normalUrl } from "./file.ts";
import type { Field } from "./kinds.ts";
import { JsonPayload } from "./read-value.ts";

/** A field that is not as declared. The texts are for people, and hold no secret. */
export interface Change {
  readonly field: Field;
  readonly from: string;
  readonly to: string;
}

export interface DiffOptions {
  /** The value of a variable of the environment. */
  readonly variable: (name: string) => string | undefined;
  /** Whether secrets, which nobody can read back, count as changed. */
  readonly secrets: boolean;
}

/** Which fields of a thing differ from what is declared. What is not declared is left alone. */
export function changesOf({ kind, values }: Declared, record: Fields, options: DiffOptions): Change[] {
  const silent = kind.silent(record);
  return kind.fields.flatMap((field): Change[] => {
    const wanted = values.get(field.name);
    if (!values.has(field.name) || silent.includes(field.name)) return [];
    if (field.isSecret) return options.secrets ? [{ field, from: HIDDEN, to: shown(wanted) }] : [];
    const given = record[field.name];
    if (isAsWanted(field.desc, wanted, given, options)) return [];
    return [{ field, from: shown(given), to: shown(wanted) }];
  });
}

/** A value in one line for people. */
export function shown(value: unknown): string {
  if (value === null || value === undefined) return "none";
  if (value instanceof JsonPayload) return shortened(value.json);
  if (value instanceof EnvironmentText) return value.template;
  if (typeof value === "string" && /^[\x21-\x7e]+$/.test(value)) return shortened(value);
  const json = JSON.stringify(value, (_, inner) => (inner instanceof EnvironmentText ? inner.template : inner));
  return shortened(json);
}

function shortened(text: string): string {
  return text.length > 100 ? `${text.slice(0, 99)}…` : text;
}

function isAsWanted(desc: DescField, wanted: unknown, given: unknown, options: DiffOptions): boolean {
  if (wanted === null || given === undefined) return wanted === null && given === undefined;
  if (wanted instanceof JsonPayload) return sameJson(wanted.json, given);
  return sameValue(desc, wanted, given, options);
}

function sameValue(desc: DescField, wanted: unknown, given: unknown, options: DiffOptions): boolean {
  if (desc.fieldKind === "map") return sameMap(wanted as Fields, given as Fields, options);
  if (desc.fieldKind !== "list") return sameSingle(desc, wanted, given, options);
  const [items, others] = [wanted as unknown[], given as unknown[]];
  return items.length === others.length && items.every((item, at) => sameSingle(desc, item, others[at], options));
}

/** White space and the ways to escape a character do not count. */
function sameJson(text: string, given: unknown): boolean {
  return JSON.stringify(parseExactly(text)) === JSON.stringify(given);
}

function sameMap(wanted: Fields, given: Fields, { variable }: DiffOptions): boolean {
  const names = Object.keys(wanted);
  if (names.length !== Object.keys(given).length) return false;
  return names.every((name) => {
    const value = wanted[name];
    if (!(value instanceof EnvironmentText)) return value === given[name];
    // What is hidden is there; more cannot be said of it.
    return given[name] === HIDDEN || value.resolve(variable) === given[name];
  });
}

function sameSingle({ message }: DescField, wanted: unknown, given: unknown, options: DiffOptions): boolean {
  if (message?.typeName === TimestampSchema.typeName) return Date.parse(String(wanted)) === Date.parse(String(given));
  if (message !== undefined) return sameMessage(message, wanted as Fields, given as Fields, options);
  return normalUrl(wanted) === normalUrl(given);
}

/** A message is replaced as a whole: what is left out in it is 0, or what the server takes for its default. */
function sameMessage({ fields }: DescMessage, wanted: Fields, given: Fields, options: DiffOptions): boolean {
  return fields.every((field) => {
    const value = wanted[field.name];
    if (value !== undefined)
      return given[field.name] !== undefined && sameValue(field, value, given[field.name], options);
    return field.presence === FeatureSet_FieldPresence.EXPLICIT || isZero(given[field.name]);
  });
}

function isZero(value: unknown): boolean {
  if (Array.isArray(value)) return value.length === 0;
  if (typeof value === "object" && value !== null) return Object.keys(value).length === 0;
  return value === undefined || value === 0 || value === false || value === "";
}
