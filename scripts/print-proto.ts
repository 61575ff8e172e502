import { type DescFile, getExtension, type Message, type Registry } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import {
  type DescriptorProto,
  type EnumDescriptorProto,
  EnumOptionsSchema,
  EnumValueOptionsSchema,
  type FieldDescriptorProto,
  FieldDescriptorProto_Label,
  FieldDescriptorProto_Type,
  FieldOptionsSchema,
  FileOptionsSchema,
  MessageOptionsSchema,
  OneofOptionsSchema,
} from "@bufbuild/protobuf/wkt";

type OptionsSchema = Parameters<typeof reflect>[0];
type AnyField = ReflectMessage["fields"][number] | NonNullable<ReturnType<Registry["getExtension"]>>;

/** An option or a text-format entry: its name, the field that describes it, one value of it. */
type Entry = readonly [name: string, field: AnyField, value: unknown];

/**
 * Prints a file descriptor as proto source, without comments.
 * Covers what proto2 and proto3 files without services, groups, maps and bytes options need; throws on anything else,
 * because a silently incomplete file would still compile.
 * `registry` must know every extension that the file's options use.
 */
export function printProto(file: DescFile, registry: Registry): string {
  const { proto } = file;
  const isProto2 = proto.syntax === "" || proto.syntax === "proto2";
  if (!isProto2 && proto.syntax !== "proto3") throw new Error(`${proto.name}: syntax ${proto.syntax} is not covered`);
  if (proto.service.length > 0) throw new Error(`${proto.name}: services are not covered`);

  const lines = [`syntax = "${isProto2 ? "proto2" : "proto3"}";`, `package ${proto.package};`];
  for (const dependency of proto.dependency) lines.push(`import ${quote(dependency)};`);
  lines.push(...statements(FileOptionsSchema, proto.options, ""));
  for (const [extendee, fields] of Map.groupBy(proto.extension, (field) => field.extendee)) {
    lines.push(`extend ${extendee} {`, ...fields.map((field) => printField(field, "  ")), "}");
  }
  for (const descriptor of proto.enumType) lines.push(...printEnum(descriptor, ""));
  for (const descriptor of proto.messageType) lines.push(...printMessage(descriptor, ""));
  return `${lines.join("\n")}\n`;

  function printMessage(message: DescriptorProto, indent: string): string[] {
    const inner = `${indent}  `;
    if (message.options?.mapEntry || message.extension.length > 0) {
      throw new Error(`${message.name}: maps and nested extensions are not covered`);
    }
    const out = [`${indent}message ${message.name} {`, ...statements(MessageOptionsSchema, message.options, inner)];
    for (const nested of message.enumType) out.push(...printEnum(nested, inner));
    for (const nested of message.nestedType) out.push(...printMessage(nested, inner));
    const printed = new Set<number>();
    for (const field of message.field) {
      const index = oneofIndex(field);
      if (index === undefined) out.push(printField(field, inner));
      else if (!printed.has(index)) {
        printed.add(index);
        const oneof = message.oneofDecl[index];
        out.push(`${inner}oneof ${oneof?.name} {`, ...statements(OneofOptionsSchema, oneof?.options, `${inner}  `));
        const members = message.field.filter((member) => oneofIndex(member) === index);
        out.push(...members.map((member) => printField(member, `${inner}  `)), `${inner}}`);
      }
    }
    for (const range of message.extensionRange) {
      if (range.options) throw new Error(`${message.name}: options of extension ranges are not covered`);
      out.push(`${inner}extensions ${span(range.start, range.end - 1)};`);
    }
    for (const range of message.reservedRange) out.push(`${inner}reserved ${span(range.start, range.end - 1)};`);
    for (const name of message.reservedName) out.push(`${inner}reserved ${quote(name)};`);
    return [...out, `${indent}}`];
  }

  function printEnum(descriptor: EnumDescriptorProto, indent: string): string[] {
    const inner = `${indent}  `;
    const out = [`${indent}enum ${descriptor.name} {`, ...statements(EnumOptionsSchema, descriptor.options, inner)];
    for (const value of descriptor.value) {
      const options = optionEntries(EnumValueOptionsSchema, value.options, inner);
      out.push(`${inner}${value.name} = ${value.number}${bracketed(options, inner)};`);
    }
    // Unlike a message's, an enum's reserved range includes its end.
    for (const range of descriptor.reservedRange) out.push(`${inner}reserved ${span(range.start, range.end)};`);
    for (const name of descriptor.reservedName) out.push(`${inner}reserved ${quote(name)};`);
    return [...out, `${indent}}`];
  }

  function printField(field: FieldDescriptorProto, indent: string): string {
    if (field.type === FieldDescriptorProto_Type.GROUP) throw new Error(`${field.name}: groups are not covered`);
    const options = optionEntries(FieldOptionsSchema, field.options, `${indent}  `);
    if (field.defaultValue !== "") {
      const isText = field.type === FieldDescriptorProto_Type.STRING;
      options.unshift(`default = ${isText ? quote(field.defaultValue) : field.defaultValue}`);
    }
    const type = field.typeName || FieldDescriptorProto_Type[field.type].toLowerCase();
    return `${indent}${fieldLabel(field)}${type} ${field.name} = ${field.number}${bracketed(options, indent)};`;
  }

  function fieldLabel(field: FieldDescriptorProto): string {
    if (oneofIndex(field) !== undefined) return "";
    if (field.label === FieldDescriptorProto_Label.REPEATED) return "repeated ";
    if (field.label === FieldDescriptorProto_Label.REQUIRED) return "required ";
    return isProto2 || field.proto3Optional ? "optional " : "";
  }

  function statements(schema: OptionsSchema, options: Message | undefined, indent: string): string[] {
    return optionEntries(schema, options, indent).map((entry) => `${indent}option ${entry};`);
  }

  function optionEntries(schema: OptionsSchema, options: Message | undefined, indent: string): string[] {
    if (options === undefined) return [];
    return entriesOf(reflect(schema, options)).map(
      ([name, field, value]) => `${name} = ${literal(field, value, indent)}`,
    );
  }

  function entriesOf(message: ReflectMessage): Entry[] {
    const out: Entry[] = [];
    for (const field of message.fields) {
      if (!message.isSet(field)) continue;
      if (field.fieldKind === "map") throw new Error(`${field.name}: maps are not covered`);
      const value: unknown = message.get(field);
      if (field.fieldKind === "list")
        for (const item of value as Iterable<unknown>) out.push([field.name, field, item]);
      else out.push([field.name, field, value]);
    }
    // An extension lies among the unknown fields, once for each element of a repeated one.
    for (const no of new Set((message.getUnknown() ?? []).map((unknown) => unknown.no))) {
      const extension = registry.getExtensionFor(message.desc, no);
      if (extension === undefined) throw new Error(`${message.desc.typeName}: extension ${no} is not in the registry`);
      const value: unknown = getExtension(message.message, extension);
      const { message: schema } = extension;
      for (const item of extension.fieldKind === "list" ? (value as Iterable<unknown>) : [value]) {
        out.push([`(.${extension.typeName})`, extension, schema ? reflect(schema, item as Message) : item]);
      }
    }
    return out;
  }

  /** The value in the text format that option values are written in. */
  function literal(field: AnyField, value: unknown, indent: string): string {
    if (field.enum) return field.enum.value[value as number]?.name ?? String(value);
    if (field.message) {
      const rows = entriesOf(value as ReflectMessage).map(
        ([name, inner, item]) => `${indent}  ${name}: ${literal(inner, item, `${indent}  `)}`,
      );
      return rows.length === 0 ? "{}" : `{\n${rows.join("\n")}\n${indent}}`;
    }
    if (value instanceof Uint8Array) throw new Error(`${field.name}: bytes are not covered`);
    return typeof value === "string" ? quote(value) : String(value);
  }
}

/** The largest field number, and what a range that is open above ends with. */
const MAX_FIELD_NUMBER = 536_870_911;

function span(start: number, last: number): string {
  if (start === last) return String(start);
  return `${start} to ${last === MAX_FIELD_NUMBER ? "max" : last}`;
}

function bracketed(options: readonly string[], indent: string): string {
  return options.length === 0 ? "" : ` [\n${options.map((option) => `${indent}  ${option}`).join(",\n")}\n${indent}]`;
}

/** The declared oneof that the field belongs to; a proto3 optional field's synthetic one does not count. */
function oneofIndex(field: FieldDescriptorProto): number | undefined {
  // The index has an explicit presence: 0 is the first oneof only where the property is the message's own.
  return Object.hasOwn(field, "oneofIndex") && !field.proto3Optional ? field.oneofIndex : undefined;
}

function quote(text: string): string {
  const escaped = text
    .replace(/[\\"]/g, "\\$&")
    .replaceAll("\n", "\\n")
    .replaceAll("\r", "\\r")
    .replaceAll("\t", "\\t");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what this escapes.
  return `"${escaped.replace(/[\0-\x1f\x7f]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`)}"`;
}
