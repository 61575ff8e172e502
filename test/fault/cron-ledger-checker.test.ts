import { expect, test } from "vitest";
import { checkFires, type JobHistory } from "./cron-ledger-checker.ts";

const record = (id: string, second: number, state = "succeeded") => ({
  run_id: id,
  scheduled_at: new Date(second * 1_000).toISOString(),
  state,
});
const arrival = (webhookId: string, second: number, timestamp = second) => ({
  webhookId,
  timestamp,
  receivedAt: second * 1_000,
});
const good: JobHistory = {
  job: "a",
  ledger: [record("r1", 100), record("r2", 101)],
  arrivals: [arrival("r1", 100), arrival("r1", 103), arrival("r2", 101)],
};
const judge = (change: Partial<JobHistory>) => checkFires([{ ...good, ...change }], 100, 102);

test("a history in which every fire has one record and arrived, once or more, is right", () => {
  expect(judge({})).toEqual([]);
});

test.each([
  ["missing", { ledger: [record("r1", 100)], arrivals: [arrival("r1", 100)] }],
  ["duplicate", { ledger: [...good.ledger, record("r3", 101)], arrivals: [...good.arrivals, arrival("r3", 101)] }],
  ["unexpected", { ledger: [...good.ledger, record("r3", 102)], arrivals: [...good.arrivals, arrival("r3", 102)] }],
  ["one id for two fires", { ledger: [record("r1", 100), record("r1", 101)], arrivals: [arrival("r1", 100)] }],
  ["missed", { ledger: [record("r1", 100, "missed"), record("r2", 101)], arrivals: [arrival("r2", 101)] }],
  ["never arrived", { arrivals: [arrival("r1", 100)] }],
  ["arrived without a record", { arrivals: [...good.arrivals, arrival("r9", 101)] }],
  ["signed -3600 s off", { arrivals: [...good.arrivals, arrival("r2", 4_000, 400)] }],
] as const)("a history is wrong in which something is: %s", (kind, change) => {
  expect(judge(change)).toEqual([expect.stringMatching(`^${kind}`)]);
});
