import type { ServiceImpl } from "@connectrpc/connect";
import {
  PurgeDeadLettersResponseSchema,
  type UpdateDeadLetterRequest,
  UpdateDeadLetterRequestSchema,
} from "../../gen/scheduling/v1/dead_letter_pb.js";
import {
  DeadLetterScope,
  type QueueService,
  UpdateDeadLetterResponseSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { JSON_TYPE } from "../domain/content-type.ts";
import { formatCursor, invalidCursor, parseCursor } from "../domain/cursor.ts";
import { parseId } from "../domain/ids.ts";
import { splitHeaders } from "../domain/own-headers.ts";
import { Refusal } from "../errors.ts";
import { countDeadLetters, drawCut, purgeDeadLetters } from "../store/dead-letter-moves.ts";
import {
  type DeadLetterChanges,
  type DeadLetterRow,
  type DeathPosition,
  findDeadLetter,
  hasDeadLetters,
  listDeadLetters,
  lockDeadLetter,
  updateDeadLetter,
} from "../store/dead-letters.ts";
import { isDeadLetterQueue, type NamedQueueRow } from "../store/queues.ts";
import { checkHeaders } from "../webhook/headers.ts";
import type { AppContext } from "./context.ts";
import { toDeadLetter } from "./convert-dead-letter.ts";
import { toMessages } from "./convert-queue.ts";
import { filterTag, toFilter } from "./dead-letter-filter.ts";
import { requireQueue } from "./find-queue.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { checkPayload } from "./payload.ts";
import { writtenFields } from "./update-mask.ts";
import { walkTime } from "./walk-time.ts";

type DeadLetterHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  "listDeadLetters" | "getDeadLetter" | "updateDeadLetter" | "purgeDeadLetters"
>;

/** The calls on dead letters where they lie. */
export function deadLetterHandlers(app: AppContext): DeadLetterHandlers {
  return {
    async listDeadLetters(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const filter = toFilter("", req);
      const queue = await requireQueue(app.db, ctx, req.queue);
      const scope = await scopeOf(app.db, queue, req.scope);
      const list = `${queue.queue_id} ${scope} ${filterTag(filter)}`;
      const page = await listDeadLetters(app.db, queue, scope, filter, position(list, req.cursor), limit);
      return {
        items: toMessages(page.rows),
        ...(page.next === undefined ? {} : { nextCursor: cursorAfter(list, page.next) }),
      };
    },

    async getDeadLetter(req, ctx) {
      const queue = await requireQueue(app.db, ctx, req.queue);
      return { deadLetter: toDeadLetter(await requireDeadLetter(findDeadLetter, app.db, queue, req.messageId)) };
    },

    updateDeadLetter: (req, ctx) =>
      once(app, ctx, UpdateDeadLetterResponseSchema, req, `${req.queue}/${req.messageId}`, async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const row = await requireDeadLetter(lockDeadLetter, trx, queue, req.messageId);
        if (row.leased) {
          throw new Refusal("DEAD_LETTER_LEASED", { queue: req.queue, message_id: req.messageId });
        }
        await updateDeadLetter(trx, row, changesOf(app, req, row));
        return { deadLetter: toDeadLetter(await requireDeadLetter(findDeadLetter, trx, queue, req.messageId)) };
      }),

    purgeDeadLetters(req, ctx) {
      const filter = toFilter("filter.", req.filter);
      return once(app, ctx, PurgeDeadLettersResponseSchema, req, req.queue, async (trx) => {
        const within = walkTime(ctx);
        const cut = await drawCut(trx);
        const queue = await requireQueue(trx, ctx, req.queue);
        if (req.dryRun) {
          const purged = await countDeadLetters(trx, queue, filter, { leased: true, cut, within });
          return { queue: req.queue, purged, dryRun: true };
        }
        return { queue: req.queue, purged: await purgeDeadLetters(trx, queue, filter, cut, within) };
      });
    },
  };
}

async function requireDeadLetter(
  find: typeof findDeadLetter,
  db: Db,
  queue: NamedQueueRow,
  messageId: string,
): Promise<DeadLetterRow> {
  const id = parseId("msg", messageId);
  const row = id === undefined ? undefined : await find(db, queue, id);
  if (row === undefined) throw new Refusal("DEAD_LETTER_NOT_FOUND", { queue: queue.name, message_id: messageId });
  return row;
}

/** @throws Refusal FIELD_INVALID, PAYLOAD_TOO_LARGE */
function changesOf(app: AppContext, req: UpdateDeadLetterRequest, row: DeadLetterRow): DeadLetterChanges {
  const written = writtenFields(UpdateDeadLetterRequestSchema, req);
  if (written.has("payload") && req.payload === undefined) throw Refusal.field("payload", "cannot be cleared");
  const contentType = written.has("content_type") ? req.contentType || JSON_TYPE : row.content_type;
  if (written.has("payload") || written.has("content_type")) {
    // Each may be at odds with the one that stays.
    checkPayload(app.limits, "payload", req.payload ?? row.payload, contentType);
  }
  return {
    ...(written.has("payload") && req.payload !== undefined && { payload: req.payload }),
    ...(written.has("content_type") && { contentType }),
    ...(written.has("headers") && { headers: headersOf(req.headers, row.headers) }),
    ...(written.has("priority") && { priority: req.priority ?? 0 }),
    ...(written.has("group_id") && { groupId: req.groupId ?? "" }),
  };
}

/** Headers that only the service gives stay as they are, whether the caller repeats them or leaves them out. */
function headersOf(given: Readonly<Record<string, string>>, stored: DeadLetterRow["headers"]): Record<string, string> {
  const { own } = splitHeaders(stored);
  const others = Object.entries(given).filter(([name, value]) => own[name] !== value);
  return { ...checkHeaders("headers", Object.fromEntries(others)), ...own };
}

async function scopeOf(db: Db, queue: NamedQueueRow, scope: DeadLetterScope): Promise<"source" | "self"> {
  if (scope === DeadLetterScope.SELF) return "self";
  if (scope === DeadLetterScope.SOURCE || (await hasDeadLetters(db, queue))) return "source";
  return (await isDeadLetterQueue(db, queue)) ? "self" : "source";
}

function position(list: string, cursor: string): DeathPosition | undefined {
  const given = parseCursor("dead letters", list, cursor);
  if (given === undefined) return undefined;
  const [at = "", seq = ""] = given;
  const deadLetteredAt = new Date(at);
  if (Number.isNaN(deadLetteredAt.getTime()) || !/^\d{1,18}$/.test(seq)) throw invalidCursor();
  return { deadLetteredAt, seq };
}

function cursorAfter(list: string, { deadLetteredAt, seq }: DeathPosition): string {
  return formatCursor("dead letters", list, [deadLetteredAt.toISOString(), seq]);
}
