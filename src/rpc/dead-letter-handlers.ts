import type { ServiceImpl } from "@connectrpc/connect";
import {
  DeadLetterScope,
  type QueueService,
  RedriveDeadLettersResponseSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { queueTopic } from "../db/wakeups.ts";
import { formatCursor, invalidCursor, parseCursor } from "../domain/cursor.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import {
  countDeadLetters,
  type DeadLetterPosition,
  hasDeadLetters,
  listDeadLetters,
  redriveDeadLetters,
} from "../store/dead-letters.ts";
import type { MessageRow } from "../store/messages.ts";
import { isDeadLetterQueue, type NamedQueueRow } from "../store/queues.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toMessage } from "./convert-queue.ts";
import { requireQueue } from "./find-queue.ts";
import { instantOf } from "./instant.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";

/** Dead letters put back by one call where it does not say. */
const REDRIVE_LIMIT = 1_000;

type DeadLetterHandlers = Pick<ServiceImpl<typeof QueueService>, "listDeadLetters" | "redriveDeadLetters">;

/** The calls on dead letters. */
export function deadLetterHandlers(app: AppContext): DeadLetterHandlers {
  return {
    async listDeadLetters(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const queue = await requireQueue(app.db, ctx, req.queue);
      const scope = await scopeOf(app.db, queue, req.scope);
      const list = `${queue.queue_id} ${scope}`;
      const rows = await listDeadLetters(app.db, queue, scope, position(list, req.cursor), limit + 1);
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit).map(toMessage),
        ...(last === undefined ? {} : { nextCursor: cursorAfter(list, last) }),
      };
    },

    async redriveDeadLetters(req, ctx) {
      if (req.messageId !== "" && req.since !== undefined) {
        throw Refusal.field("since", "cannot come together with message_id");
      }
      const answer = await once(app, ctx, RedriveDeadLettersResponseSchema, req, req.queue, async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const messageId = req.messageId === "" ? undefined : parseId("msg", req.messageId);
        const known = req.messageId === "" || messageId !== undefined;
        const choice = { messageId, since: req.since && instantOf("since", req.since) };
        const redriven = known ? await redriveDeadLetters(trx, queue, choice, req.maxMessages ?? REDRIVE_LIMIT) : 0;
        if (redriven === 0 && req.messageId !== "") {
          throw new Refusal("DEAD_LETTER_NOT_FOUND", { queue: req.queue, message_id: req.messageId });
        }
        const remaining = await countDeadLetters(trx, queue, choice);
        return { queue: req.queue, redriven, ...(remaining > 0 && { remaining }) };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      app.wakeups.wake("pushes");
      return answer;
    },
  };
}

async function scopeOf(db: Db, queue: NamedQueueRow, scope: DeadLetterScope): Promise<"source" | "self"> {
  if (scope === DeadLetterScope.SELF) return "self";
  if (scope === DeadLetterScope.SOURCE || (await hasDeadLetters(db, queue))) return "source";
  return (await isDeadLetterQueue(db, queue)) ? "self" : "source";
}

function position(list: string, cursor: string): DeadLetterPosition | undefined {
  const given = parseCursor("dead letters", list, cursor);
  if (given === undefined) return undefined;
  const deadLetteredAt = new Date(given[0] ?? "");
  const messageId = parseId("msg", given[1] ?? "");
  if (Number.isNaN(deadLetteredAt.getTime()) || messageId === undefined) throw invalidCursor();
  return { deadLetteredAt, messageId };
}

function cursorAfter(list: string, row: MessageRow): string {
  return formatCursor("dead letters", list, [
    row.dead_lettered_at?.toISOString() ?? "",
    formatId("msg", row.message_id),
  ]);
}
