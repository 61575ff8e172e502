import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  CreateEventWebhookResponseSchema,
  DeleteEventWebhookResponseSchema,
  type EventService,
  type EventWebhookSchema,
  RotateEventWebhookSecretResponseSchema,
  TestEventWebhookResponseSchema,
  type UpdateEventWebhookRequest,
  UpdateEventWebhookRequestSchema,
  UpdateEventWebhookResponseSchema,
} from "../../gen/scheduling/v1/event_service_pb.js";
import type { Db, EventWebhookRow } from "../db/schema.ts";
import { isEventFilter } from "../domain/events.ts";
import { formatId, parseId } from "../domain/ids.ts";
import type { KeyOwner } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import {
  deleteEventWebhook,
  type EventWebhookChanges,
  findEventWebhook,
  insertEventWebhook,
  listEventWebhooks,
  MAX_EVENT_WEBHOOKS,
  sendTestEvent,
  updateEventWebhook,
} from "../store/event-webhooks.ts";
import { setSigningSecret } from "../store/signing-keys.ts";
import { newSecret } from "../webhook/sign.ts";
import { checkTarget } from "../webhook/target.ts";
import { type AppContext, projectOf } from "./context.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { checkSecret, rotateAsAsked, sealSecret } from "./secret.ts";
import { writtenFields } from "./update-mask.ts";

/** The calls on event webhooks. */
export function eventService(app: AppContext): ServiceImpl<typeof EventService> {
  return {
    async createEventWebhook(req, ctx) {
      const url = checkTarget("url", req.url, app.targets);
      checkEventTypes(req.eventTypes);
      checkSecret(req.secret);
      return once(app, ctx, CreateEventWebhookResponseSchema, req, "", async (trx) => {
        const secret = req.secret || newSecret();
        const webhook = await insertEventWebhook(trx, {
          project_id: projectOf(ctx),
          name: req.name,
          url,
          event_types: [...req.eventTypes],
          enabled: req.enabled ?? true,
          disabled_reason: null,
        });
        if (webhook === undefined) throw new Refusal("WEBHOOK_LIMIT", { limit: `${MAX_EVENT_WEBHOOKS}` });
        await setSecret(app, trx, webhook, secret);
        return { webhook: { ...toWebhook(webhook), ...(req.secret === "" && { secret }) } };
      });
    },

    async listEventWebhooks(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const list = { list: "webhooks", scope: "", prefix: "wh" } as const;
      const rows = await listEventWebhooks(app.db, projectOf(ctx), lastIdOf(list, req.cursor), limit + 1);
      return toPage(list, rows, limit, (row) => row.webhook_id, toWebhook);
    },

    getEventWebhook: async (req, ctx) => ({ webhook: toWebhook(await requireWebhook(app.db, ctx, req.webhookId)) }),

    async updateEventWebhook(req, ctx) {
      const written = writtenFields(UpdateEventWebhookRequestSchema, req);
      const secret = written.has("secret") ? req.secret || newSecret() : undefined;
      const changes = changesOf(app, req, written);
      const answer = await once(app, ctx, UpdateEventWebhookResponseSchema, req, req.webhookId, async (trx) => {
        const webhook = await requireWebhook(trx, ctx, req.webhookId);
        if (written.size === 0) return { webhook: toWebhook(webhook) };
        const updated = await updateEventWebhook(trx, webhook.project_id, webhook.webhook_id, changes);
        if (updated === undefined) throw notFound(req.webhookId);
        if (secret !== undefined) await setSecret(app, trx, webhook, secret);
        return { webhook: { ...toWebhook(updated), ...(secret !== undefined && !req.secret && { secret }) } };
      });
      return answer;
    },

    deleteEventWebhook: (req, ctx) =>
      once(app, ctx, DeleteEventWebhookResponseSchema, req, req.webhookId, async (trx) => {
        const id = parseId("wh", req.webhookId);
        if (id === undefined || !(await deleteEventWebhook(trx, projectOf(ctx), id))) throw notFound(req.webhookId);
        return { webhookId: req.webhookId, deleted: true };
      }),

    rotateEventWebhookSecret(req, ctx) {
      checkSecret(req.secret);
      return once(app, ctx, RotateEventWebhookSecretResponseSchema, req, req.webhookId, async (trx) => {
        const webhook = await requireWebhook(trx, ctx, req.webhookId);
        return { webhookId: req.webhookId, ...(await rotateAsAsked(app.vault, trx, keyOwnerOf(webhook), req)) };
      });
    },

    async testEventWebhook(req, ctx) {
      const answer = await once(app, ctx, TestEventWebhookResponseSchema, req, req.webhookId, async (trx) => {
        const webhook = await requireWebhook(trx, ctx, req.webhookId);
        return { webhookId: req.webhookId, runId: formatId("run", await sendTestEvent(trx, webhook)) };
      });
      app.wakeups.wake("runs");
      return answer;
    },
  };
}

/** The caller's webhook of that id. @throws Refusal WEBHOOK_NOT_FOUND */
async function requireWebhook(db: Db, ctx: HandlerContext, webhookId: string): Promise<EventWebhookRow> {
  const id = parseId("wh", webhookId);
  const webhook = id === undefined ? undefined : await findEventWebhook(db, projectOf(ctx), id);
  if (webhook === undefined) throw notFound(webhookId);
  return webhook;
}

async function setSecret(app: AppContext, trx: Db, webhook: EventWebhookRow, secret: string): Promise<void> {
  const owner = keyOwnerOf(webhook);
  await setSigningSecret(trx, owner, sealSecret(app.vault, owner, secret));
}

function keyOwnerOf({ project_id: projectId, webhook_id: ownerId }: EventWebhookRow): KeyOwner {
  return { projectId, ownerId };
}

function notFound(webhookId: string): Refusal {
  return new Refusal("WEBHOOK_NOT_FOUND", { webhook_id: webhookId });
}

function changesOf(app: AppContext, req: UpdateEventWebhookRequest, written: ReadonlySet<string>): EventWebhookChanges {
  if (written.has("url") && req.url === undefined) throw Refusal.field("url", "cannot be cleared");
  checkEventTypes(req.eventTypes);
  checkSecret(req.secret ?? "");
  return {
    ...(written.has("url") && { url: checkTarget("url", req.url ?? "", app.targets) }),
    ...(written.has("event_types") && { event_types: [...req.eventTypes] }),
    ...(written.has("name") && { name: req.name ?? "" }),
    ...(written.has("enabled") && { enabled: req.enabled ?? true, disabled_reason: null }),
  };
}

function checkEventTypes(filters: readonly string[]): void {
  for (const [index, filter] of filters.entries()) {
    if (!isEventFilter(filter))
      throw Refusal.field(`event_types[${index}]`, "is no type of event, nor does it begin one");
  }
}

function toWebhook(row: EventWebhookRow): MessageInitShape<typeof EventWebhookSchema> {
  return {
    webhookId: formatId("wh", row.webhook_id),
    name: row.name,
    url: row.url,
    eventTypes: row.event_types,
    enabled: row.enabled,
    ...(row.disabled_reason !== null && { disabledReason: row.disabled_reason }),
    createdAt: timestampFromDate(row.created_at),
    updatedAt: timestampFromDate(row.updated_at),
  };
}
