import { type DescField, type DescMessage, getOption, type Message } from "@bufbuild/protobuf";
import {
  type FieldRules,
  field as fieldRules,
  type Int32Rules,
  message as messageRules,
  type StringRules,
} from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { isStorable } from "./unstorable-text.ts";

/** Whether a message keeps all rules for certain, and has no text that cannot be stored. */
export type QuickCheck = (message: Message) => boolean;

type Matches = (pattern: string, text: string) => boolean;
type Check = (value: unknown) => boolean;

const never: Check = () => false;

/**
 * Makes the check of a message out of the rules of the contract. It knows the kinds of rules that most requests are made of
 * and takes a part of the time of protovalidate, which is there for all others, and to say what is wrong.
 *
 * @param matches whether text has a pattern.
 */
export function quickCheck(schema: DescMessage, matches: Matches, within: readonly DescMessage[] = []): QuickCheck {
  const isKnown = schema.oneofs.length === 0 && !schema.typeName.startsWith("google.") && !within.includes(schema);
  if (!isKnown || hasOthers(getOption(schema, messageRules), [])) return never as QuickCheck;
  const ofMessage = (inner: DescMessage) => quickCheck(inner, matches, [...within, schema]) as Check;
  const checks = schema.fields.map((field) => ({ name: field.localName, check: ofField(field, ofMessage, matches) }));
  return (message) => {
    for (const { name, check } of checks) {
      if (!check((message as unknown as Record<string, unknown>)[name])) return false;
    }
    return true;
  };
}

function ofField(field: DescField, ofMessage: (schema: DescMessage) => Check, matches: Matches): Check {
  const rules = getOption(field, fieldRules);
  const { type, required } = rules;
  const check = hasOthers(rules, ["type", "required"]) ? never : ofValue(field, type, ofMessage, matches);
  switch (field.fieldKind) {
    case "list":
      return required ? (list) => (list as unknown[]).length > 0 && check(list) : check;
    case "map":
      return required ? never : check;
    case "message":
      return (value) => (value === undefined ? !required : check(value));
    default:
      // Undefined where it is not set, of a field whose presence shows.
      return (value) => {
        if (value === undefined) return !required;
        return !(required && isZero(value)) && check(value);
      };
  }
}

function ofValue(
  field: DescField,
  { case: kind, value: rules }: FieldRules["type"],
  ofMessage: (schema: DescMessage) => Check,
  matches: Matches,
): Check {
  switch (field.fieldKind) {
    case "message":
      return kind === undefined ? ofMessage(field.message) : never;
    case "map": {
      if (kind !== undefined || field.mapKind === "message") return never;
      return (map) => Object.entries(map as object).every(([key, value]) => isStorable(key) && hasNoBadText(value));
    }
    case "list": {
      if (kind !== undefined && (kind !== "repeated" || hasOthers(rules, ["minItems", "maxItems"]))) return never;
      const least = Number(rules?.minItems ?? 0);
      const most = rules !== undefined && Object.hasOwn(rules, "maxItems") ? Number(rules.maxItems) : Infinity;
      const check = field.listKind === "message" ? ofMessage(field.message) : hasNoBadText;
      return (list) => {
        const items = list as unknown[];
        return items.length >= least && items.length <= most && items.every(check);
      };
    }
    case "enum": {
      if (kind !== undefined && (kind !== "enum" || hasOthers(rules, ["definedOnly"]))) return never;
      const known = field.enum.value;
      return (value) => known[value as number] !== undefined;
    }
    case "scalar":
      if (kind === undefined) return hasNoBadText;
      if (kind === "string") return ofText(rules, matches);
      if (kind !== "int32" || hasOthers(rules, ["greaterThan", "lessThan"])) return never;
      return ofNumber(rules);
  }
}

function ofText(rules: StringRules, matches: Matches): Check {
  if (hasOthers(rules, ["minLen", "maxLen", "pattern", "notIn"])) return never;
  const { pattern, notIn } = rules;
  // Lengths are of code points, of which there are no more than code units and at least half as many.
  const least = rules.minLen > 1n ? 2 * Number(rules.minLen) : Number(rules.minLen);
  const most = Object.hasOwn(rules, "maxLen") ? Number(rules.maxLen) : Infinity;
  const check = (text: string): boolean =>
    text.length >= least &&
    text.length <= most &&
    isStorable(text) &&
    !notIn.includes(text) &&
    (pattern === "" || matches(pattern, text));
  const isEmptyGood = check("");
  return (text) => (text === "" ? isEmptyGood : check(text as string));
}

function ofNumber({ greaterThan, lessThan }: Int32Rules): Check {
  const least = greaterThan.case === undefined ? -Infinity : greaterThan.value + (greaterThan.case === "gt" ? 1 : 0);
  const most = lessThan.case === undefined ? Infinity : lessThan.value - (lessThan.case === "lt" ? 1 : 0);
  // Bounds that have changed places say what a value is not to lie between.
  return least > most ? never : (value) => (value as number) >= least && (value as number) <= most;
}

function isZero(value: unknown): boolean {
  return (
    value === "" ||
    value === 0 ||
    value === 0n ||
    value === false ||
    (value instanceof Uint8Array && value.length === 0)
  );
}

function hasNoBadText(value: unknown): boolean {
  return typeof value !== "string" || isStorable(value);
}

/** Whether rules have any but these. */
function hasOthers(rules: Message, known: readonly string[]): boolean {
  return Object.entries(rules).some(([name, value]: [string, unknown]) => {
    if (name === "$typeName" || known.includes(name)) return false;
    if (Array.isArray(value)) return value.length > 0;
    const isEmptyChoice = typeof value === "object" && value !== null && "case" in value && value.case === undefined;
    return !isEmptyChoice;
  });
}
