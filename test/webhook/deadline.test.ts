import { getEventListeners } from "node:events";
import { expect, test, vi } from "vitest";
import { Deadline } from "../../src/webhook/deadline.ts";

const HOUR_MS = 3_600_000;

test("an attempt is given up after its time limit, with a reason that says so, and its listener and its signal are told once", () => {
  vi.useFakeTimers();
  try {
    using deadline = new Deadline(1_000, []);
    const told: unknown[] = [];
    deadline.listen((reason) => told.push(reason));
    const { signal } = deadline;
    vi.advanceTimersByTime(999);
    expect([deadline.isOver, signal.aborted, told.length]).toEqual([false, false, 0]);
    expect(() => deadline.throwIfOver()).not.toThrow();
    vi.advanceTimersByTime(1);
    expect([deadline.isOver, signal.aborted, told.length]).toEqual([true, true, 1]);
    expect(() => deadline.throwIfOver()).toThrow("no answer in time");
    expect(signal.reason).toMatchObject({ error: "timeout" });
  } finally {
    vi.useRealTimers();
  }
});

test("all attempts that follow a signal are given up with it, once, and those that are over are left alone", () => {
  const [shared, other] = [new AbortController(), new AbortController()];
  using first = new Deadline(HOUR_MS, [shared.signal, other.signal]);
  using second = new Deadline(HOUR_MS, [shared.signal]);
  const ended = new Deadline(HOUR_MS, [shared.signal]);
  ended[Symbol.dispose]();
  const told: unknown[] = [];
  first.listen((reason) => told.push(reason));
  expect(getEventListeners(shared.signal, "abort")).toHaveLength(1);

  shared.abort("enough");
  other.abort("too late");
  expect([first.isOver, second.isOver, ended.isOver]).toEqual([true, true, false]);
  expect(told).toEqual(["enough"]);
  // A signal that is asked for afterwards says the same.
  expect([first.signal.aborted, first.signal.reason]).toEqual([true, "enough"]);
});

test("an attempt is over at once that follows a signal that has aborted", () => {
  using deadline = new Deadline(HOUR_MS, [AbortSignal.abort("before")]);
  expect(deadline.isOver).toBe(true);
  expect(() => deadline.throwIfOver()).toThrow("before");
});
