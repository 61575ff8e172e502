import { create, type DescField, type DescMessage, type Message } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import fc from "fast-check";
import { expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { matches } from "../../src/rpc/interceptors/validate.ts";

/** Every text field of the requests of the contract, with the messages within them. */
const FIELDS = [CronService, QueueService, TaskService]
  .flatMap(({ methods }) => methods.map(({ input }) => input))
  .flatMap((input) => [input, ...input.fields.flatMap((field) => (field.message === undefined ? [] : [field.message]))])
  .filter((schema) => schema.typeName.startsWith("scheduling."))
  .flatMap((schema) => schema.fields.filter(isText).map((field) => ({ schema, field })));

function isText(field: DescField): boolean {
  return field.fieldKind === "scalar" && field.scalar === 9;
}

/** Texts that come near the patterns, and any other. */
const TEXTS = fc.oneof(
  fc.string({ unit: fc.constantFrom(..."aZ09._-+/; =\n\r\t\0 ~\x7f\x85\u00e9\u017f\u2028\u{1f600}") }),
  fc.string({ unit: "binary" }),
  fc.constantFrom("text/plain; charset=utf-8", "a/b", "a/b;c=d; e=f", "a/b;", "x".repeat(128), "x".repeat(129)),
);

const theirs = createValidator();
const ours = createValidator({ regexMatch: matches });

test("every text rule of the contract is read as RE2 reads it", () => {
  expect(FIELDS.length).toBeGreaterThan(50);
  fc.assert(
    fc.property(fc.constantFrom(...FIELDS), TEXTS, ({ schema, field }, text) => {
      const message = withText(schema, field, text);
      expect(violations(ours.validate(schema, message))).toEqual(violations(theirs.validate(schema, message)));
    }),
    { numRuns: 3_000 },
  );
});

function withText(schema: DescMessage, field: DescField, text: string): Message {
  return create(schema, { [field.localName]: text } as never);
}

function violations(result: ReturnType<typeof theirs.validate>): string[] {
  expect(result.kind).not.toBe("error");
  return (result.violations ?? []).map(({ message }) => message);
}
