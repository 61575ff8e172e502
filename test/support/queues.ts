import type { Db } from "../../src/db/schema.ts";
import { listDeadLetters } from "../../src/store/dead-letters.ts";
import { type MessageRow, type NewMessage, publishMessages } from "../../src/store/messages.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { createQueue, type NamedQueueRow, QUEUE_DEFAULTS, type QueueSettings } from "../../src/store/queues.ts";
import { signsWith } from "./signing.ts";

/** A queue with default settings but for those given, in a project of that name. */
export async function makeQueue(
  db: Db,
  projectName: string,
  settings: Partial<QueueSettings> & { name?: string } = {},
): Promise<NamedQueueRow> {
  const { name = "orders", ...given } = settings;
  const project = await ensureProject(db, projectName, signsWith());
  return (await createQueue(db, project.project_id, name, { ...QUEUE_DEFAULTS, ...given })).queue;
}

/** Publishes one message for each payload and returns their ids. */
export async function publish(
  db: Db,
  queue: NamedQueueRow,
  payloads: readonly string[],
  message: Partial<NewMessage> = {},
): Promise<string[]> {
  const published = await db.transaction().execute((trx) =>
    publishMessages(
      trx,
      queue,
      payloads.map((payload) => ({
        payload: Buffer.from(payload),
        contentType: "",
        headers: {},
        groupId: "",
        priority: 0,
        delaySeconds: 0,
        ...message,
      })),
    ),
  );
  return published.map((message) => message.message_id);
}

/** The newest dead letters that died in the queue, newest first. */
export async function deadLetters(db: Db, queue: NamedQueueRow): Promise<readonly MessageRow[]> {
  return (await listDeadLetters(db, queue, "source", {}, undefined, 100)).rows;
}
