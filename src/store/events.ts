import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { type EventData, type EventType, eventBody, isAt, matchesEvent } from "../domain/events.ts";
import { insertCallbacks, type NewCallback } from "./callbacks.ts";

/** Something that happened in a project. */
export interface ProjectEvent {
  readonly type: EventType;
  readonly data: EventData;
  /**
   * The target that the event is about, as a normalised URL: a webhook there is not told, since what is wrong with it
   * would be told to nobody but itself.
   */
  readonly aboutUrl?: string | undefined;
  /** Who is told beside the webhooks that subscribe: a URL of the cron job or task `signerId`, signed by its keys. */
  readonly alsoTo?: { readonly url: string; readonly signerId: string | null } | undefined;
}

/**
 * Stores an event for everyone who is to be told of it, in the caller's transaction: told is what has committed, and
 * nothing else. Returns how many deliveries are due by it; the caller may wake `runs` after the commit. Costs one look at
 * the project's webhooks when nobody subscribes.
 *
 * A delivery that fails for good raises no event.
 */
export async function emitEvent(trx: Db, projectId: string, event: ProjectEvent): Promise<number> {
  return emitEvents(trx, projectId, event.type, async () => [event.data], event);
}

/**
 * `emitEvent` for many events of one type, as what one statement did. `read` tells their data, and is asked only when
 * somebody is to be told.
 */
export async function emitEvents(
  trx: Db,
  projectId: string,
  type: EventType,
  read: (now: Date) => Promise<readonly EventData[]>,
  { aboutUrl, alsoTo }: Pick<ProjectEvent, "aboutUrl" | "alsoTo"> = {},
): Promise<number> {
  const { webhooks, now } = await subscribers(trx, projectId, type);
  const targets: Omit<NewCallback, "body">[] = webhooks
    .filter(({ url }) => aboutUrl === undefined || !isAt(url, aboutUrl))
    .map(({ webhook_id, url }) => ({ webhookId: webhook_id, url, signerId: null }));
  if (alsoTo !== undefined) targets.push({ webhookId: null, ...alsoTo });
  if (targets.length === 0) return 0;

  const callbacks = (await read(now)).flatMap((data) => {
    const body = eventBody(type, now, data);
    return targets.map((target) => ({ ...target, body }));
  });
  await insertCallbacks(trx, projectId, callbacks);
  return callbacks.length;
}

/** The webhooks that subscribe to a type, held against deletion until the transaction ends, and the instant. */
async function subscribers(trx: Db, projectId: string, type: EventType) {
  const { rows } = await sql<{ webhook_id: string | null; url: string; event_types: string[]; now: Date }>`
    select w.webhook_id, w.url, w.event_types, carillon_now() as now
    from (select 1) always left join (
      select webhook_id, url, event_types from event_webhooks where project_id = ${projectId} and enabled
      for key share
    ) w on true`.execute(trx);
  const webhooks = rows.flatMap(({ webhook_id, url, event_types }) =>
    webhook_id !== null && matchesEvent(event_types, type) ? [{ webhook_id, url }] : [],
  );
  return { webhooks, now: rows[0]?.now ?? new Date(0) };
}
