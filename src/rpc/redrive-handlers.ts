import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { CancelRedriveResponseSchema, StartRedriveResponseSchema } from "../../gen/scheduling/v1/dead_letter_pb.js";
import { type QueueService, RedriveDeadLettersResponseSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db, QueueRow } from "../db/schema.ts";
import { queueTopic } from "../db/wakeups.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { countDeadLetters, redriveDeadLetters } from "../store/dead-letter-moves.ts";
import { holdQueue } from "../store/queues.ts";
import { cancelRedrive, findRedrive, listRedrives, startRedrive } from "../store/redrives.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toRedrive } from "./convert-dead-letter.ts";
import { toFilter } from "./dead-letter-filter.ts";
import { requireQueue } from "./find-queue.ts";
import { lastIdOf, type NewestFirst, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { walkTime } from "./walk-time.ts";

/** Dead letters put back by one call where it does not say. */
const REDRIVE_LIMIT = 1_000;

type RedriveHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  "redriveDeadLetters" | "startRedrive" | "getRedrive" | "listRedrives" | "cancelRedrive"
>;

/** The calls that put dead letters back. */
export function redriveHandlers(app: AppContext): RedriveHandlers {
  return {
    async redriveDeadLetters(req, ctx) {
      if (req.messageId !== "" && (req.since ?? req.filter) !== undefined) {
        throw Refusal.field(req.since === undefined ? "filter" : "since", "cannot come together with message_id");
      }
      if (req.since !== undefined && req.filter?.since !== undefined) {
        throw Refusal.field("since", "cannot come together with filter.since");
      }
      const since = req.since && toFilter("", { ...NO_FILTER, since: req.since }).since;
      const one = req.messageId === "" ? undefined : { ...NO_FILTER, messageIds: [req.messageId] };
      const filter = { ...toFilter("filter.", one ?? req.filter), ...(since && { since }) };
      if (since !== undefined && filter.until !== undefined && filter.until <= since) {
        throw Refusal.field("filter.until", "must be after since");
      }
      const limit = req.maxMessages ?? REDRIVE_LIMIT;
      const answer = await once(app, ctx, RedriveDeadLettersResponseSchema, req, req.queue, async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const to = await destination(trx, ctx, queue, req.toQueue);
        const within = walkTime(ctx);
        const redriven = req.dryRun
          ? Math.min(limit, await countDeadLetters(trx, queue, filter, { within }))
          : await redriveDeadLetters(trx, queue, to, filter, limit, within);
        if (redriven === 0 && req.messageId !== "") {
          throw new Refusal("DEAD_LETTER_NOT_FOUND", { queue: req.queue, message_id: req.messageId });
        }
        const remaining = (await countDeadLetters(trx, queue, filter, { within })) - (req.dryRun ? redriven : 0);
        return { queue: req.queue, redriven, ...(remaining > 0 && { remaining }), ...(req.dryRun && { dryRun: true }) };
      });
      if (!req.dryRun) {
        app.wakeups.wake(queueTopic(projectOf(ctx), req.toQueue || req.queue));
        app.wakeups.wake("pushes");
      }
      return answer;
    },

    async startRedrive(req, ctx) {
      const filter = toFilter("filter.", req.filter);
      const answer = await once(app, ctx, StartRedriveResponseSchema, req, req.queue, async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const to = await destination(trx, ctx, queue, req.toQueue);
        const messagesPerSecond = req.messagesPerSecond ?? null;
        const { redrive, started } = await startRedrive(trx, {
          queue,
          to,
          filter,
          messagesPerSecond,
          within: walkTime(ctx),
        });
        if (!started) {
          const redriveId = formatId("rdr", redrive.redrive_id);
          throw new Refusal("REDRIVE_RUNNING", { queue: req.queue, redrive_id: redriveId });
        }
        return { redrive: toRedrive(redrive) };
      });
      app.wakeups.wake("redrives");
      return answer;
    },

    async getRedrive(req, ctx) {
      const id = parseId("rdr", req.redriveId);
      const redrive = id === undefined ? undefined : await findRedrive(app.db, projectOf(ctx), id);
      if (redrive === undefined) throw new Refusal("REDRIVE_NOT_FOUND", { redrive_id: req.redriveId });
      return { redrive: toRedrive(redrive) };
    },

    async listRedrives(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const queue = await requireQueue(app.db, ctx, req.queue);
      const list: NewestFirst = { list: "redrives", scope: queue.queue_id, prefix: "rdr" };
      const rows = await listRedrives(app.db, queue, lastIdOf(list, req.cursor), limit + 1);
      return toPage(list, rows, limit, (row) => row.redrive_id, toRedrive);
    },

    cancelRedrive: (req, ctx) =>
      once(app, ctx, CancelRedriveResponseSchema, req, req.redriveId, async (trx) => {
        const id = parseId("rdr", req.redriveId);
        const redrive = id === undefined ? undefined : await cancelRedrive(trx, projectOf(ctx), id);
        if (redrive === undefined) throw new Refusal("REDRIVE_NOT_FOUND", { redrive_id: req.redriveId });
        return { redrive: toRedrive(redrive) };
      }),
  };
}

const NO_FILTER = { messageIds: [], reason: "", headerContains: "", errorContains: "" };

/** The queue that dead letters go to, held against deletion. @throws Refusal QUEUE_NOT_FOUND */
async function destination(trx: Db, ctx: HandlerContext, queue: QueueRow, name: string): Promise<QueueRow> {
  const { queue_id } = name === "" ? queue : await requireQueue(trx, ctx, name);
  const held = await holdQueue(trx, projectOf(ctx), queue_id);
  if (held === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: name || queue.name });
  return held;
}
