import { readFile } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import { EVENT_TYPES, eventBody, isAt, isEventFilter, matchesEvent } from "../../src/domain/events.ts";

describe("a filter of event types", () => {
  test.each([
    [[], "task.failed", true],
    [["task.failed"], "task.failed", true],
    [["task.*"], "task.failed", true],
    [["cron.*"], "cron.run.failed", true],
    [["cron.run.*", "task.failed"], "cron.run.failed", true],
    [["cron"], "cron.run.failed", false],
    [["cro.*"], "cron.run.failed", false],
    [["task.failed.*"], "task.failed", false],
    [["message.dead_lettered"], "task.failed", false],
  ] as const)("%j lets %s through: %s", (filters, type, expected) => {
    expect(matchesEvent(filters, type)).toBe(expected);
  });

  test("is a type that there is, or the beginning of one", () => {
    for (const filter of ["task.failed", "task.*", "cron.run.*"]) expect(isEventFilter(filter)).toBe(true);
    for (const filter of ["", "*", ".*", "task", "task.", "failed", "x.*"]) expect(isEventFilter(filter)).toBe(false);
  });
});

describe("a webhook is told nothing about the target that it stands at", () => {
  test.each([
    ["https://a.example/hook", "https://a.example/hook", true],
    ["https://a.example/hook?key=1", "https://a.example/hook", true],
    ["https://a.example/hook", "https://a.example/", false],
    ["https://a.example/hook", "https://a.example:8443/hook", false],
    ["https://a.example/hook", "https://b.example/hook", false],
    ["https://a.example/hook", "not a URL", false],
  ])("%s, event about %s: %s", (webhook, about, expected) => {
    expect(isAt(webhook, about)).toBe(expected);
  });
});

test("an event is type, timestamp and data, without what is undefined", () => {
  const body = eventBody("task.failed", new Date(0), { task_id: "t", error: undefined });
  expect(body.toString()).toBe('{"type":"task.failed","timestamp":"1970-01-01T00:00:00.000Z","data":{"task_id":"t"}}');
});

test.each(["docs/events.md", "proto/scheduling/v1/event_service.proto"])(
  "%s knows every type of event",
  async (file) => {
    const text = await readFile(new URL(`../../${file}`, import.meta.url), "utf8");
    for (const type of Object.keys(EVENT_TYPES)) expect(text).toContain(`\`${type}\``);
  },
);
