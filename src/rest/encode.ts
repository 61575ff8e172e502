import { type DescField, type Message, ScalarType } from "@bufbuild/protobuf";
import { type FieldMask, FieldMaskSchema, type Timestamp } from "@bufbuild/protobuf/wkt";
import { isJson } from "./json-scan.ts";
import { type FieldPlan, isJsonType, isTimestamp, type MessagePlan, planMessage } from "./message-plan.ts";
import { enumName } from "./scalar.ts";
import { formatTimestamp } from "./timestamp.ts";

/**
 * Deepest payload that is written as JSON. It is what requests are held to, so no stored payload is deeper; one that
 * is would be written as base64.
 */
const MAX_PAYLOAD_DEPTH = 64;

/** A message whose fields are read by name. */
type Fields = Readonly<Record<string, unknown>>;

/**
 * Writes a message as REST shows it: names in snake_case, each second spelling after its own; fields without presence
 * always, others when they are set; enum values as short names, and not at all when unspecified; times with
 * milliseconds in UTC; JSON payloads byte for byte as they are stored, other bytes as base64.
 */
export function encodeMessage(plan: MessagePlan, message: Message): string {
  const fields = message as unknown as Fields;
  const members: string[] = [];
  for (const field of plan.fields) {
    const value = fields[field.desc.localName];
    if (value === undefined || isUnspecified(field.desc, value)) continue;
    const json = encodeValue(field, value, fields);
    for (const name of [field.name, ...field.emit]) members.push(`"${name}":${json}`);
  }
  return `{${members.join(",")}}`;
}

/** Writes the value of one field of a message, for a route whose `response_body` names it. Unset it is `{}`. */
export function encodeField(field: FieldPlan, message: Message): string {
  const fields = message as unknown as Fields;
  const value = fields[field.desc.localName];
  return value === undefined ? "{}" : encodeValue(field, value, fields);
}

/** The text of a field of a message. */
export function textOf(field: FieldPlan, message: Message): string {
  return String((message as unknown as Fields)[field.desc.localName] ?? "");
}

function encodeValue(field: FieldPlan, value: unknown, siblings: Fields): string {
  const { desc } = field;
  if (desc.fieldKind === "list") return `[${(value as unknown[]).map((item) => encodeSingle(desc, item)).join(",")}]`;
  if (desc.fieldKind === "map") {
    const pairs = Object.entries(value as Record<string, string>);
    return `{${pairs.map(([key, text]) => `${JSON.stringify(key)}:${JSON.stringify(text)}`).join(",")}}`;
  }
  if (field.contentType === undefined) return encodeSingle(desc, value);
  const type = siblings[field.contentType.desc.localName];
  return encodePayload(value as Uint8Array, typeof type === "string" ? type : "");
}

function encodeSingle(desc: DescField, value: unknown): string {
  if (desc.enum !== undefined) return JSON.stringify(enumName(desc.enum, value as number) ?? value);
  if (desc.message !== undefined) {
    if (isTimestamp(desc.message)) return `"${formatTimestamp(value as Timestamp)}"`;
    if (desc.message.typeName === FieldMaskSchema.typeName) return JSON.stringify((value as FieldMask).paths.join(","));
    return encodeMessage(planMessage(desc.message), value as Message);
  }
  if (desc.scalar === ScalarType.BYTES) return encodeBase64(value as Uint8Array);
  // A double that is not finite becomes null: JSON has no word for it.
  return JSON.stringify(value);
}

function encodePayload(bytes: Uint8Array, contentType: string): string {
  if (!isJsonType(contentType) || !isJson(bytes, MAX_PAYLOAD_DEPTH)) return encodeBase64(bytes);
  // Valid JSON is valid UTF-8, and decoding and encoding that gives the same bytes.
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8");
}

function encodeBase64(bytes: Uint8Array): string {
  return `"${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64")}"`;
}

function isUnspecified(desc: DescField, value: unknown): boolean {
  return desc.fieldKind === "enum" && value === 0;
}
