import { type DescField, type DescMessage, getOption, hasOption, ScalarType } from "@bufbuild/protobuf";
import { FieldMaskSchema, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { rest } from "../../gen/scheduling/v1/rest_pb.js";

/** How REST reads and writes one field. */
export interface FieldPlan {
  readonly desc: DescField;
  /** The contract's name, in snake_case. */
  readonly name: string;
  /** Second names in answers. */
  readonly emit: readonly string[];
  /** For a payload: the sibling with its content type. */
  readonly contentType?: FieldPlan;
  /** For a field that may be a whole body as it is: most bytes of it. */
  readonly rawBodyBytes?: number;
  /** May be a whole answer, as plain text. */
  readonly plainText?: true;
}

/** How REST reads and writes one message. */
export interface MessagePlan {
  readonly desc: DescMessage;
  readonly fields: readonly FieldPlan[];
  /** The field for every accepted name: its own, the second ones, and the lowerCamelCase of each. */
  readonly bySpelling: ReadonlyMap<string, FieldPlan>;
  /** The field `update_mask`, when it is a google.protobuf.FieldMask. */
  readonly updateMask?: FieldPlan;
}

const plans = new WeakMap<DescMessage, MessagePlan>();

const SIXTY_FOUR_BITS: ReadonlySet<ScalarType> = new Set([
  ScalarType.INT64,
  ScalarType.UINT64,
  ScalarType.SINT64,
  ScalarType.FIXED64,
  ScalarType.SFIXED64,
]);

/**
 * Compiles a message and all that it holds.
 *
 * @throws Error when the contract has what REST does not speak: 64 bit integers (JSON numbers lose them), oneofs, maps
 * other than string to string, well-known types other than Timestamp and FieldMask; or when two fields share a name.
 */
export function planMessage(desc: DescMessage): MessagePlan {
  const known = plans.get(desc);
  if (known !== undefined) return known;
  if (desc.oneofs.length > 0) throw new Error(`${desc.typeName}: REST does not speak oneofs`);

  const fields = new Map<string, FieldPlan>();
  const bySpelling = new Map<string, FieldPlan>();
  const claim = (spelling: string, plan: FieldPlan): void => {
    const other = bySpelling.get(spelling);
    if (other !== undefined && other !== plan) throw new Error(`${desc.typeName}: two fields are called ${spelling}`);
    bySpelling.set(spelling, plan);
  };
  for (const field of desc.fields.toSorted(payloadsLast)) {
    const option = hasOption(field, rest) ? getOption(field, rest) : undefined;
    const contentType = option?.payloadType ? fields.get(option.payloadType) : undefined;
    if (option?.payloadType && (contentType?.desc.scalar !== ScalarType.STRING || field.scalar !== ScalarType.BYTES)) {
      throw new Error(`${field}: payload_type needs a bytes field and a string field beside it`);
    }
    if (option?.rawBodyBytes && field.scalar !== ScalarType.BYTES) throw new Error(`${field}: a raw body needs bytes`);
    if (option?.plainText && field.scalar !== ScalarType.STRING) throw new Error(`${field}: plain text needs a string`);
    const plan: FieldPlan = {
      desc: field,
      name: field.name,
      emit: option?.emit ?? [],
      ...(contentType ? { contentType } : {}),
      ...(option?.rawBodyBytes ? { rawBodyBytes: option.rawBodyBytes } : {}),
      ...(option?.plainText ? { plainText: true } : {}),
    };
    fields.set(field.name, plan);
    for (const name of [field.name, ...(option?.accept ?? [])]) {
      claim(name, plan);
      claim(lowerCamelCase(name), plan);
    }
  }

  const mask = fields.get("update_mask");
  const plan: MessagePlan = {
    desc,
    fields: desc.fields.map((field) => fields.get(field.name) as FieldPlan),
    bySpelling,
    ...(mask?.desc.message?.typeName === FieldMaskSchema.typeName ? { updateMask: mask } : {}),
  };
  plans.set(desc, plan);
  for (const field of desc.fields) checkField(field);
  return plan;
}

/** The content type is planned before the payload that it describes. */
function payloadsLast(a: DescField, b: DescField): number {
  return Number(a.scalar === ScalarType.BYTES) - Number(b.scalar === ScalarType.BYTES) || a.number - b.number;
}

function checkField(field: DescField): void {
  if (field.scalar !== undefined && SIXTY_FOUR_BITS.has(field.scalar)) {
    throw new Error(`${field}: REST does not speak 64 bit integers`);
  }
  if (field.fieldKind === "map" && (field.mapKey !== ScalarType.STRING || field.scalar !== ScalarType.STRING)) {
    throw new Error(`${field}: REST speaks only maps of strings`);
  }
  const message = field.message;
  if (message === undefined || isTimestamp(message)) return;
  if (message.typeName === FieldMaskSchema.typeName && field.fieldKind === "message") return;
  if (message.typeName.startsWith("google.protobuf.")) throw new Error(`${field}: REST does not speak this type`);
  planMessage(message);
}

/** Whether the message is google.protobuf.Timestamp, which REST writes as a string. */
export function isTimestamp(desc: DescMessage): boolean {
  return desc.typeName === TimestampSchema.typeName;
}

/**
 * Whether a payload of this content type is JSON: nothing (the default is application/json), application/json, or a
 * type that ends in `+json`. Parameters do not count.
 */
export function isJsonType(contentType: string): boolean {
  const essence = (contentType.split(";", 1)[0] ?? "").trim().toLowerCase();
  return essence === "" || essence === "application/json" || essence.endsWith("+json");
}

/** `dead_letter_queue` as `deadLetterQueue`. */
function lowerCamelCase(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}
