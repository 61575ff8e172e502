import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { EventWebhookRow } from "../../src/db/schema.ts";
import {
  deleteEventWebhook,
  insertEventWebhook,
  type NewEventWebhook,
  updateEventWebhook,
} from "../../src/store/event-webhooks.ts";
import { emitEvent, emitEvents } from "../../src/store/events.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { signsWith } from "../support/signing.ts";

let database: TestDatabase;
let projects = 0;
let projectId: string;

beforeAll(async () => {
  database = await testDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());
beforeEach(async () => {
  const { project_id } = await ensureProject(database.db, `project-${projects++}`, signsWith("a secret"));
  projectId = project_id;
});

async function webhook(fields: Partial<NewEventWebhook> = {}): Promise<EventWebhookRow> {
  const created = await insertEventWebhook(database.db, {
    project_id: projectId,
    name: "",
    url: "https://a.example/hook",
    event_types: [],
    ...fields,
  });
  return created ?? expect.fail();
}

const failed = { type: "task.failed", data: { task_id: "t" } } as const;

/** Targets and states of what is on its way, or was. */
async function deliveries() {
  const { db } = database;
  return db
    .selectFrom("runs as r")
    .innerJoin("callbacks as c", (join) =>
      join.onRef("c.project_id", "=", "r.project_id").onRef("c.callback_id", "=", "r.callback_id"),
    )
    .select(["c.url", "r.state"])
    .where("r.project_id", "=", projectId)
    .orderBy("c.url")
    .execute();
}

describe("an event", () => {
  test("is put on its way to everyone who subscribes, and to the URL of its own", async () => {
    await webhook({ url: "https://a.example/" });
    await webhook({ url: "https://b.example/", event_types: ["task.*"] });
    await webhook({ url: "https://c.example/", event_types: ["cron.*"] });
    await webhook({ url: "https://d.example/", enabled: false });
    const alsoTo = { url: "https://e.example/", signerId: null };
    expect(await emitEvent(database.db, projectId, { ...failed, alsoTo })).toBe(3);
    const urls = (await deliveries()).map(({ url }) => url);
    expect(urls).toEqual(["https://a.example/", "https://b.example/", "https://e.example/"]);
  });

  test("writes nothing and reads no data when nobody is to be told", async () => {
    await webhook({ event_types: ["cron.*"] });
    const sent = emitEvents(database.db, projectId, "message.dead_lettered", () => expect.fail("read"));
    expect(await sent).toBe(0);
    expect(await deliveries()).toEqual([]);
  });

  test("about a target is not sent to that target", async () => {
    await webhook({ url: "https://a.example/hook" });
    await webhook({ url: "https://b.example/hook" });
    await emitEvent(database.db, projectId, { ...failed, aboutUrl: "https://a.example/hook" });
    expect((await deliveries()).map(({ url }) => url)).toEqual(["https://b.example/hook"]);
  });

  test("does not happen when what it tells of is rolled back", async () => {
    await webhook();
    const rolledBack = database.db.transaction().execute(async (trx) => {
      await emitEvent(trx, projectId, failed);
      throw new Error("no");
    });
    await expect(rolledBack).rejects.toThrow("no");
    expect(await deliveries()).toEqual([]);
  });
});

describe("what is on its way to a webhook is called off", () => {
  test("when it is deleted", async () => {
    const { webhook_id } = await webhook();
    await emitEvent(database.db, projectId, failed);
    expect(await deleteEventWebhook(database.db, projectId, webhook_id)).toBe(true);
    expect((await deliveries()).map(({ state }) => state)).toEqual(["canceled"]);
  });

  test("when it is disabled, and not when it is renamed", async () => {
    const { webhook_id } = await webhook();
    await emitEvent(database.db, projectId, failed);
    await updateEventWebhook(database.db, projectId, webhook_id, { name: "new" });
    expect((await deliveries()).map(({ state }) => state)).toEqual(["pending"]);
    await updateEventWebhook(database.db, projectId, webhook_id, { enabled: false });
    expect((await deliveries()).map(({ state }) => state)).toEqual(["canceled"]);
  });
});
