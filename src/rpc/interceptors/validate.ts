import { create, type DescMessage, type DescService, type Message } from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation } from "@bufbuild/protovalidate";
import type { Interceptor } from "@connectrpc/connect";
import { type FieldViolation, Refusal } from "../../errors.ts";
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
  const validator = createValidator();

  function check(schema: DescMessage, message: Message): void {
    const result = validator.validate(schema, message as never);
    if (result.kind === "error") throw result.error;
    if (result.kind === "invalid") throw refusalOf(result.violations);
    const unstorable = unstorableText(schema, message);
    if (unstorable !== undefined)
      throw Refusal.field(unstorable, "must be text without NUL and without half surrogate pairs");
  }
  for (const service of services) {
    for (const { input } of service.methods) {
      const result = validator.validate(input, create(input));
      if (result.kind === "error") throw result.error;
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

function refusalOf(found: readonly Violation[]): Refusal {
  const violations: FieldViolation[] = found.slice(0, MAX_VIOLATIONS).map((violation) => ({
    field: pathToString(violation.field),
    description: violation.message,
  }));
  const shown = violations.slice(0, MAX_IN_SUMMARY).map(({ field, description }) => sentence(field, description));
  if (found.length > shown.length) shown.push(`and ${found.length - shown.length} more`);
  return new Refusal("FIELD_INVALID", { summary: shown.join("; ") }, { violations });
}

function sentence(field: string, description: string): string {
  return field === "" ? description : `${field}: ${description}`;
}
