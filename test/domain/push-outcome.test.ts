import { describe, expect, test } from "vitest";
import { failedInBatch } from "../../src/domain/push-answer.ts";
import { decidePush } from "../../src/domain/push-outcome.ts";

const failure = { error: "HTTP 500" };
const unwanted = { ...failure, permanent: true };
const middle = () => 0.5;

describe("what becomes of a pushed message", () => {
  test.each([
    ["a delivered one is acked", undefined, 9, undefined, "ack"],
    ["one that shutdown cut off goes back", "cancelled", 9, undefined, "release"],
    ["a failed one is tried again while it may", failure, 1, undefined, "retry"],
    ["a failed one without a group dies after max_retries", failure, 2, undefined, "bury"],
    ["one that blocks its group is tried on and on", failure, 99, "block", "retry"],
    ["one that its group skips dies", failure, 2, "skip", "bury"],
    ["one that parks its group parks it", failure, 2, "park", "park"],
    ["one that the receiver wants no more of dies at once", unwanted, 0, undefined, "bury"],
    ["one that the receiver wants no more of blocks its group no longer", unwanted, 0, "block", "bury"],
    ["one that the receiver wants no more of parks its group", unwanted, 0, "park", "park"],
    ["one that parks its group is tried again before", failure, 1, "park", "retry"],
  ] as const)("%s", (_, result, failures, groupPolicy, kind) => {
    expect(decidePush(result, { failures, maxRetries: 2, groupPolicy, backoff: null }, middle).kind).toBe(kind);
  });

  test("the waits are those of webhooks, longer or other where the receiver asks", () => {
    const delay = (asked: object, failures = 0) =>
      decidePush({ ...failure, ...asked }, { failures, maxRetries: 99, groupPolicy: undefined, backoff: null }, middle);
    expect(delay({})).toMatchObject({ delaySeconds: 5 });
    expect(delay({}, 50)).toMatchObject({ delaySeconds: 36_000 });
    expect(delay({ retryAfterMs: 120_000 })).toMatchObject({ delaySeconds: 120 });
    expect(delay({ retryAfterMs: 1 })).toMatchObject({ delaySeconds: 5 });
    expect(delay({ retryInMs: 1 })).toMatchObject({ delaySeconds: 1 });
  });

  test("the waits are the subscription's own where it has some", () => {
    const backoff = { waitsMs: [1_000, 7_000], jitter: "none" } as const;
    const delay = (failures: number, asked = {}) =>
      decidePush({ ...failure, ...asked }, { failures, maxRetries: 99, groupPolicy: undefined, backoff }, middle);
    expect([0, 1, 2].map((failures) => delay(failures))).toMatchObject(
      [1, 7, 7].map((delaySeconds) => ({ delaySeconds })),
    );
    expect(delay(0, { retryAfterMs: 60_000 })).toMatchObject({ delaySeconds: 7 });
  });
});

describe("the answer to a batch", () => {
  const id = "00000000-0000-0000-0000-000000000001";
  const publicId = "msg_00000000000000000000000001";
  const failed = (answer: string) => [...failedInBatch(Buffer.from(answer), [{ message_id: id }])];

  test("names messages that failed, in its own words or in ours", () => {
    expect(failed(JSON.stringify({ failed: [{ message_id: publicId, error: "no" }] }))).toEqual([[id, "no"]]);
    expect(failed(JSON.stringify({ failed: [{ message_id: publicId }] }))).toEqual([[id, "the receiver refused it"]]);
  });

  test.each([
    "",
    "ok",
    "null",
    "[]",
    "{}",
    '{"failed": 1}',
    '{"failed": [null, 1, {}, {"message_id": "msg_x"}]}',
    '{"failed',
  ])("names none where it is %j", (answer) => {
    expect(failed(answer)).toEqual([]);
  });
});
