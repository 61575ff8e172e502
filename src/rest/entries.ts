import { isDeepStrictEqual } from "node:util";
import { Refusal } from "../errors.ts";
import type { Findings } from "./findings.ts";
import { JsonScanner } from "./json-scan.ts";
import { type FieldPlan, isJsonType } from "./message-plan.ts";
import { bytesFromBase64, Wrong } from "./scalar.ts";

/** What a caller sent for one field. */
export interface Entry {
  /** Where it stands, in the caller's spelling: `messages[3].retry`, or `query.limit`. */
  readonly at: string;
  /** The field's value; `null` for JSON null, undefined when it was refused. */
  readonly value: unknown;
}

/** The fields that a caller gave for one message. */
export type Entries = Map<FieldPlan, Entry>;

/** A payload as it was sent. What it means depends on its content type, which may come after it. */
export class RawPayload {
  readonly json: Uint8Array;

  constructor(json: Uint8Array) {
    this.json = json;
  }
}

/**
 * Adds what was sent for a field.
 *
 * @throws Refusal FIELDS_CONFLICT when the field came before with another value.
 */
export function addEntry(entries: Entries, field: FieldPlan, entry: Entry): void {
  const earlier = entries.get(field);
  if (earlier === undefined) entries.set(field, entry);
  else if (!isDeepStrictEqual(earlier.value, entry.value)) {
    throw new Refusal("FIELDS_CONFLICT", { first: earlier.at, second: entry.at });
  }
}

/** Turns entries into the init shape of their message. Payloads get their bytes; null and refused values go. */
export function initOf(entries: Entries, findings: Findings): Record<string, unknown> {
  const init: Record<string, unknown> = {};
  for (const [field, { at, value }] of entries) {
    if (value === null || value === undefined) continue;
    const plain = value instanceof RawPayload ? payloadBytes(value, contentTypeOf(field, entries)) : value;
    if (plain instanceof Wrong) findings.wrong(at, plain);
    else init[field.desc.localName] = plain;
  }
  return init;
}

function contentTypeOf(field: FieldPlan, entries: Entries): string {
  const type = field.contentType === undefined ? undefined : entries.get(field.contentType)?.value;
  return typeof type === "string" ? type : "";
}

function payloadBytes({ json }: RawPayload, contentType: string): Uint8Array | Wrong {
  // A copy does not keep the body that it was in.
  if (isJsonType(contentType)) return new Uint8Array(json);
  const scanner = new JsonScanner(json, Number.POSITIVE_INFINITY);
  if (scanner.peek() === "string") {
    const bytes = bytesFromBase64(scanner.string());
    if (!(bytes instanceof Wrong)) return bytes;
  }
  return new Wrong("must be a base64 string, as its content type is not JSON");
}
