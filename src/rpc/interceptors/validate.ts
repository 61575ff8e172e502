import { create, type DescMessage, type DescService, getOption, type Message } from "@bufbuild/protobuf";
import { pathToString, reflect } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation } from "@bufbuild/protovalidate";
import { message as messageRules } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import type { Interceptor } from "@connectrpc/connect";
import { type FieldViolation, Refusal } from "../../errors.ts";
import { type QuickCheck, quickCheck } from "./quick-check.ts";
import { unstorableText } from "./unstorable-text.ts";

/** How many violations the message of a refusal spells out; the details have them all. */
const MAX_IN_SUMMARY = 5;
/** Most violations in an answer: a batch of a thousand wrong messages needs no thousand sentences. */
const MAX_VIOLATIONS = 100;

/**
 * Refuses requests that break the contract's field rules, with every broken rule at once, or that hold text which cannot
 * be stored. The rules of the services'
 * requests are compiled here, so that the first call does not wait for it.
 *
 * @throws Error when a rule of the contract cannot be compiled.
 */
export function validate(services: readonly DescService[]): Interceptor {
  const validator = createValidator({ regexMatch: matches });
  const quickChecks = new Map<DescMessage, QuickCheck>();

  function check(schema: DescMessage, message: Message): void {
    if (quickChecks.get(schema)?.(message)) return;
    const result = validator.validate(schema, message as never);
    if (result.kind === "error") throw result.error;
    if (result.kind === "invalid") throw refusalOf(schema, message, result.violations);
    const unstorable = unstorableText(schema, message);
    if (unstorable !== undefined)
      throw Refusal.field(unstorable, "must be text without NUL and without half surrogate pairs");
  }
  for (const service of services) {
    for (const { input } of service.methods) {
      const result = validator.validate(input, create(input));
      if (result.kind === "error") throw result.error;
      quickChecks.set(input, quickCheck(input, matches));
    }
  }
  async function* checked(schema: DescMessage, messages: AsyncIterable<Message>): AsyncGenerator<Message> {
    for await (const message of messages) {
      check(schema, message);
      yield message;
    }
  }

  return (next) => (request) => {
    if (request.stream) return next({ ...request, message: checked(request.method.input, request.message) as never });
    check(request.method.input, request.message);
    return next(request);
  };
}

const patterns = new Map<string, RegExp>();

/**
 * Whether text has a pattern of the contract. They are of the part of RE2's language that JavaScript reads alike, and none
 * backtracks far; protovalidate's own RE2 takes ten times as long. The contract has few, so all are kept.
 */
export function matches(pattern: string, text: string): boolean {
  const known = patterns.get(pattern) ?? new RegExp(pattern, "u");
  patterns.set(pattern, known);
  return known.test(text);
}

function refusalOf(schema: DescMessage, message: Message, found: readonly Violation[]): Refusal {
  const violations: FieldViolation[] = found.slice(0, MAX_VIOLATIONS).map((violation) => ({
    field: fieldOf(schema, message, violation),
    description: violation.message,
  }));
  const shown = violations.slice(0, MAX_IN_SUMMARY).map(({ field, description }) => sentence(field, description));
  if (found.length > shown.length) shown.push(`and ${found.length - shown.length} more`);
  return new Refusal("FIELD_INVALID", { summary: shown.join("; ") }, { violations });
}

/** The field that a rule is about. Of fields that rule each other out, the first where all are missing, and else the last. */
function fieldOf(schema: DescMessage, message: Message, { field, ruleId }: Violation): string {
  if (field.length > 0) return pathToString(field);
  // Our own rules of several fields are called as the one that is to be told.
  if (ruleId !== "message.oneof") return schema.fields.some(({ name }) => name === ruleId) ? ruleId : "";
  const given = reflect(schema, message);
  const isSet = (name: string) => schema.fields.some((one) => one.name === name && given.isSet(one));
  const rules = getOption(schema, messageRules).oneof.map(({ fields }) => ({ fields, set: fields.filter(isSet) }));
  const broken = rules.find(({ set }) => set.length !== 1);
  return broken?.set.at(-1) ?? broken?.fields[0] ?? "";
}

function sentence(field: string, description: string): string {
  return field === "" ? description : `${field}: ${description}`;
}
