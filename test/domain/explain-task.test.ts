import { expect, test } from "vitest";
import { CLOSED, DISABLED } from "../../src/domain/breaker.ts";
import { explainTask, type TaskQuestion } from "../../src/domain/explain-task.ts";

const NOW = new Date("2030-01-01T00:00:00Z");
const at = (seconds: number) => new Date(NOW.getTime() + seconds * 1_000);
const run: TaskQuestion["run"] = {
  live: true,
  leaseExpiresAt: null,
  runAt: at(-1),
  startBy: null,
  attempt: 0,
  error: null,
  parked: false,
};
const endpoint: NonNullable<TaskQuestion["endpoint"]> = {
  breaker: CLOSED,
  maxConcurrency: null,
  maxRate: null,
  pace: null,
  pausedUntilMs: null,
  nextSlotMs: 0,
  reason: null,
  inFlight: 0,
};
const open = { ...CLOSED, state: "open", nextProbeAtMs: at(30).getTime() } as const;

interface Case {
  readonly it: string;
  readonly state?: TaskQuestion["state"];
  readonly run?: Partial<TaskQuestion["run"]>;
  readonly endpoint?: Partial<typeof endpoint>;
  readonly waitingFor: string;
  readonly until?: Date;
  readonly says: RegExp;
}

const cases: readonly Case[] = [
  { it: "that is due and free", waitingFor: "node", says: /waits for a node/ },
  { it: "for later", run: { runAt: at(60) }, waitingFor: "time", until: at(60), says: /2030-01-01T00:01/ },
  {
    it: "that failed and is made again",
    state: "retrying",
    run: { runAt: at(60), attempt: 2, error: "HTTP 500" },
    waitingFor: "retry",
    until: at(60),
    says: /attempt 2 failed \(HTTP 500\)/,
  },
  {
    it: "under way",
    state: "running",
    run: { leaseExpiresAt: at(60), attempt: 1 },
    waitingFor: "attempt",
    until: at(60),
    says: /attempt 1 is under way/,
  },
  {
    it: "whose node died",
    state: "running",
    run: { leaseExpiresAt: at(-1), attempt: 1 },
    waitingFor: "lost_attempt",
    says: /nobody has told/,
  },
  {
    it: "that was canceled",
    state: "canceled",
    run: { live: false, error: "the task was canceled" },
    waitingFor: "over",
    says: /^it is over: canceled, the task was canceled$/,
  },
  {
    it: "that expired",
    state: "expired",
    run: { live: false, error: "expired" },
    waitingFor: "over",
    says: /: expired$/,
  },
  { it: "that is too late", run: { startBy: NOW }, waitingFor: "node", says: /about to expire/ },
  {
    it: "of a disabled endpoint, long before its time",
    run: { runAt: at(1e6) },
    endpoint: { breaker: DISABLED, reason: "HTTP 410" },
    waitingFor: "endpoint_disabled",
    says: /disabled \(HTTP 410\)/,
  },
  {
    it: "of a failing endpoint",
    endpoint: { breaker: open, reason: "HTTP 500" },
    waitingFor: "endpoint_failing",
    until: at(30),
    says: /fails \(HTTP 500\)/,
  },
  {
    it: "of a failing endpoint, before its time",
    run: { runAt: at(60) },
    endpoint: { breaker: open },
    waitingFor: "time",
    until: at(60),
    says: /scheduled for/,
  },
  {
    it: "of an endpoint that is paused for longer than until its time",
    run: { runAt: at(60) },
    endpoint: { pausedUntilMs: at(90).getTime() },
    waitingFor: "endpoint_paused",
    until: at(90),
    says: /no requests until/,
  },
  {
    it: "of an endpoint that was paused",
    endpoint: { pausedUntilMs: at(-1).getTime() },
    waitingFor: "node",
    says: /waits for a node/,
  },
  {
    it: "of an endpoint with as many requests as it may have",
    endpoint: { maxConcurrency: 2, inFlight: 2 },
    waitingFor: "endpoint_full",
    says: /2 requests under way, and is limited to 2/,
  },
  {
    it: "of an endpoint with a rate",
    endpoint: { maxRate: 5, nextSlotMs: at(1).getTime() },
    waitingFor: "endpoint_rate",
    says: /gets 5 requests a second/,
  },
  {
    it: "that is set apart with its endpoint",
    run: { parked: true },
    waitingFor: "endpoint_turn",
    says: /waits for its turn/,
  },
];

test.each(cases)("a task $it waits for: $waitingFor", ({ state = "scheduled", waitingFor, until, says, ...given }) => {
  const answer = explainTask({
    now: NOW,
    state,
    run: { ...run, ...given.run },
    endpoint: given.endpoint && { ...endpoint, ...given.endpoint },
  });
  expect(answer).toEqual({ waitingFor, until, explanation: expect.stringMatching(says) });
});
