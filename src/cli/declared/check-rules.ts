import { create, type DescField, type DescMessage } from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { TimestampSchema, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import { shortName } from "../api/options.ts";
import { EnvironmentText } from "./environment-text.ts";
import { JsonPayload } from "./read-value.ts";

const validator = createValidator();

/** A broken rule of the contract: `flow.max_in_flight`, "must be greater than or equal to 0". */
export interface BrokenRule {
  /** Empty where it is a rule of several fields, which it names. */
  readonly at: string;
  readonly rule: string;
}

/** Holds the values of a request's fields against the rules that the contract states for them. */
export function brokenRules(request: DescMessage, values: ReadonlyMap<string, unknown>): BrokenRule[] {
  const message = create(request, initOf(request, Object.fromEntries(values)));
  const result = validator.validate(request, message);
  if (result.kind === "error") throw result.error;
  if (result.kind === "valid") return [];
  return result.violations.map(({ field, message: rule }) => ({ at: pathToString(field), rule }));
}

function initOf(desc: DescMessage, values: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const given = desc.fields.flatMap((field) => {
    const value = values[field.name];
    return value === undefined || value === null ? [] : [[field.localName, initValue(field, value)]];
  });
  return Object.fromEntries(given);
}

function initValue(field: DescField, value: unknown): unknown {
  if (field.fieldKind === "list")
    return (value as unknown[]).filter((item) => item !== undefined).map((item) => single(field, item));
  if (field.fieldKind === "map") {
    return Object.fromEntries(Object.entries(value as object).map(([key, text]) => [key, single(field, text)]));
  }
  return single(field, value);
}

function single({ message, enum: names }: DescField, value: unknown): unknown {
  if (value instanceof JsonPayload) return Buffer.from(value.json);
  // What the environment has is for the server to judge.
  if (value instanceof EnvironmentText) return "";
  if (message?.typeName === TimestampSchema.typeName) return timestampFromMs(Date.parse(String(value)));
  if (message !== undefined) return initOf(message, value as Record<string, unknown>);
  if (names === undefined) return value;
  return names.values.find((candidate) => shortName(names, candidate) === value)?.number;
}
