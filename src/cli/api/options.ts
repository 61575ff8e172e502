import { readFile } from "node:fs/promises";
import { text as readText } from "node:stream/consumers";
import {
  type DescEnum,
  type DescEnumValue,
  type DescField,
  getOption,
  hasOption,
  ScalarType,
} from "@bufbuild/protobuf";
import { FieldMaskSchema, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { field as fieldRules } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { type Command, InvalidArgumentError, Option } from "commander";
import { rest } from "../../../gen/scheduling/v1/rest_pb.js";
import { CommandError, EXIT } from "../failure.ts";
import type { Arguments } from "./client.ts";
import type { Call } from "./contract.ts";
import { isJsonText } from "./exact-json.ts";

/** One way to give a field on the command line. */
interface FieldOption {
  readonly field: DescField;
  /** The name that the value is sent under: the field's own, or a second one of REST. */
  readonly name: string;
  readonly option: Option;
}

/** What a command was given: text, one for each time it was said, or yes and no. */
type Given = string | readonly string[] | boolean | undefined;

/**
 * Adds an option for each field that is not in the path, and a hidden one for each second name that REST takes.
 *
 * @returns reads what was given into the fields of the request.
 */
export function addFieldOptions(
  command: Command,
  call: Call,
  comments: Readonly<Record<string, string>>,
): (values: Readonly<Record<string, unknown>>) => Promise<Arguments["fields"]> {
  const fields = call.method.input.fields.filter((field) => !call.inPath.includes(field));
  const options = fields.flatMap((field) => optionsOf(field, comments[`${field.parent.typeName}.${field.name}`] ?? ""));
  for (const { field, option } of options) {
    command.addOption(option);
    if (isSwitch(field)) command.addOption(new Option(`--no-${option.long?.slice(2)}`).hideHelp());
  }
  return async (values) => {
    const members: [string, string][] = [];
    for (const { field, name, option } of options) {
      const given = values[option.attributeName()] as Given;
      if (given === undefined) continue;
      if (isMask(field))
        members.push(...(given as readonly string[]).map((cleared): [string, string] => [snake(cleared), "null"]));
      else members.push([name, await jsonOf(field, given, contentType(field, values))]);
    }
    return members;
  };
}

/** `dead_letter_queue` as `dead-letter-queue`. */
export function kebab(name: string): string {
  return name.replaceAll("_", "-");
}

function snake(name: string): string {
  return name.replaceAll("-", "_");
}

function optionsOf(field: DescField, about: string): FieldOption[] {
  const accepted = hasOption(field, rest) ? getOption(field, rest).accept : [];
  // The singular of a list's name is its option already.
  const second = accepted.filter((name) => flags(field, name) !== flags(field, field.name));
  return [field.name, ...second].map((name) => {
    const option = new Option(flags(field, name), helpOf(field, about));
    if (name !== field.name) option.hideHelp();
    if (field.fieldKind === "list" || field.fieldKind === "map" || isMask(field)) {
      option.argParser((text: string, before: readonly string[] | undefined) => [...(before ?? []), text]);
    } else if (field.fieldKind === "enum") option.choices(shortNames(field.enum));
    else if (isNumber(field)) option.argParser(numeric);
    return { field, name, option };
  });
}

function flags(field: DescField, name: string): string {
  if (isMask(field)) return "--clear <field>";
  if (field.fieldKind === "list" || field.fieldKind === "map") name = singular(name);
  return isSwitch(field) ? `--${kebab(name)}` : `--${kebab(name)} <${placeholder(field)}>`;
}

/** `headers` as `header`: an option that is repeated gives one of them. */
function singular(name: string): string {
  return name.replace(/ies$/, "y").replace(/(?<!s)s$/, "");
}

function placeholder(field: DescField): string {
  if (field.fieldKind === "map") return "name=value";
  if (field.message !== undefined) return field.message.typeName === TimestampSchema.typeName ? "time" : "json";
  if (field.enum !== undefined) return "name";
  if (field.scalar === ScalarType.BYTES) return "text|@file|-";
  return isNumber(field) ? "number" : "text";
}

function helpOf(field: DescField, about: string): string {
  if (isMask(field)) return "A field to set back to its default. Can be repeated.";
  const notes = [
    hasOption(field, fieldRules) && getOption(field, fieldRules).required ? "Required." : "",
    about,
    isSwitch(field) ? `--no-${kebab(field.name)} says no.` : "",
    field.fieldKind === "list" || field.fieldKind === "map" ? "Can be repeated." : "",
    field.fieldKind === "list" && field.enum !== undefined ? `One of ${shortNames(field.enum).join(", ")}.` : "",
  ];
  return notes.filter((note) => note !== "").join(" ");
}

function isSwitch(field: DescField): boolean {
  return field.fieldKind === "scalar" && field.scalar === ScalarType.BOOL;
}

function isNumber(field: DescField): boolean {
  const { scalar } = field;
  return scalar !== undefined && ![ScalarType.STRING, ScalarType.BYTES, ScalarType.BOOL].includes(scalar);
}

function isMask(field: DescField): boolean {
  return field.message?.typeName === FieldMaskSchema.typeName;
}

/** What REST calls the values of an enum, without the unspecified one. */
export function shortNames(desc: DescEnum): string[] {
  return desc.values.filter(({ number }) => number !== 0).map((value) => shortName(desc, value));
}

/** What REST calls a value of an enum: `fifo` for `QUEUE_TYPE_FIFO`. */
export function shortName({ sharedPrefix = "" }: DescEnum, { name }: DescEnumValue): string {
  const lower = name.toLowerCase();
  return lower.startsWith(sharedPrefix) ? lower.slice(sharedPrefix.length) : lower;
}

function numeric(text: string): string {
  if (text.trim() === "" || Number.isNaN(Number(text))) throw new InvalidArgumentError("It must be a number.");
  return text;
}

/** The content type that was given for a payload; "" when none was. */
function contentType(field: DescField, values: Readonly<Record<string, unknown>>): string | undefined {
  const sibling = hasOption(field, rest) ? getOption(field, rest).payloadType : "";
  if (sibling === "") return undefined;
  return String(values[new Option(`--${kebab(sibling)} <text>`).attributeName()] ?? "");
}

/** The value of a field as JSON. `payloadType` is undefined where the field is no payload. */
async function jsonOf(field: DescField, given: NonNullable<Given>, payloadType: string | undefined): Promise<string> {
  if (field.fieldKind === "map") return JSON.stringify(Object.fromEntries((given as readonly string[]).map(pairOf)));
  if (field.fieldKind === "list") {
    const items = await Promise.all((given as readonly string[]).map((text) => itemsOf(field, text)));
    return `[${items.filter((item) => item !== "").join(",")}]`;
  }
  if (typeof given === "boolean") return String(given);
  return singleOf(field, given as string, payloadType);
}

function pairOf(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at < 1) throw usage(`"${text}" is not name=value`);
  return [text.slice(0, at), text.slice(at + 1)];
}

/** One or more items of a list; those of messages may come as a JSON array. */
async function itemsOf(field: DescField, text: string): Promise<string> {
  const item = await singleOf(field, text, undefined);
  const isArray = field.message !== undefined && item.trimStart().startsWith("[");
  return isArray ? item.trim().slice(1, -1).trim() : item;
}

async function singleOf(field: DescField, text: string, payloadType: string | undefined): Promise<string> {
  if (field.scalar === ScalarType.BYTES) {
    const bytes = await bytesOf(text);
    if (payloadType === undefined || !isJsonType(payloadType)) return JSON.stringify(bytes.toString("base64"));
    const json = bytes.toString("utf8").trim();
    if (isJsonText(json)) return json;
    throw usage(`--${kebab(field.name)} is not JSON; for other bytes say their --content-type`);
  }
  if (field.message !== undefined && field.message.typeName !== TimestampSchema.typeName) {
    const json = (await bytesOf(text)).toString("utf8");
    if (isJsonText(json)) return json;
    throw usage(`--${kebab(field.name)} is not JSON`);
  }
  // The server reads numbers from text.
  return JSON.stringify(text);
}

/** The text itself, what is in the file after an `@`, or what comes from standard input for `-`. */
async function bytesOf(text: string): Promise<Buffer> {
  if (text === "-") return Buffer.from(await readText(process.stdin));
  if (!text.startsWith("@")) return Buffer.from(text);
  try {
    return await readFile(text.slice(1));
  } catch (error) {
    throw usage(`${text.slice(1)} cannot be read: ${(error as Error).message}`);
  }
}

function isJsonType(contentType: string): boolean {
  const essence = (contentType.split(";", 1)[0] ?? "").trim().toLowerCase();
  return essence === "" || essence === "application/json" || essence.endsWith("+json");
}

function usage(message: string): CommandError {
  return new CommandError(message, { exitCode: EXIT.usage });
}
