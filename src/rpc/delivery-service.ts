import { create } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  CancelReplayResponseSchema,
  DeliveryFilterSchema,
  type DeliveryService,
  ReplayDeliveriesResponseSchema,
  ReplayDeliveryResponseSchema,
} from "../../gen/scheduling/v1/delivery_service_pb.js";
import type { Db } from "../db/schema.ts";
import { formatCursor } from "../domain/cursor.ts";
import { formatId, NIL_UUID, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { type DeliveryFilter, type DeliveryRow, findDelivery, listDeliveries } from "../store/deliveries.ts";
import { replayRun } from "../store/replayed-runs.ts";
import { cancelReplay, countReplay, findReplay, listReplays, startReplay } from "../store/replays.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toDelivery, toReplay } from "./convert-delivery.ts";
import { toRun } from "./convert-run.ts";
import { toDeliveryFilter } from "./delivery-filter.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { walkTime } from "./walk-time.ts";

/** What finds nothing: there is no run of that id. */
const NOTHING: DeliveryFilter = { runId: NIL_UUID };

/** The calls on the delivery log, and those that make its requests again. */
export function deliveryService(app: AppContext): ServiceImpl<typeof DeliveryService> {
  return {
    async listDeliveries(req, ctx) {
      const filter = toDeliveryFilter("", req);
      const list = { list: "deliveries", scope: JSON.stringify(filter ?? ""), prefix: "dlv" } as const;
      const before = lastIdOf(list, req.cursor);
      if (filter === undefined) return { items: [] };
      const page = await listDeliveries(app.db, projectOf(ctx), filter, before, req.limit ?? PAGE_LIMIT);
      return {
        items: page.rows.map(toDelivery),
        ...(page.next !== undefined && {
          nextCursor: formatCursor(list.list, list.scope, [formatId("dlv", page.next)]),
        }),
      };
    },

    getDelivery: async (req, ctx) => ({ delivery: toDelivery(await requireDelivery(app.db, ctx, req.deliveryId)) }),

    async replayDelivery(req, ctx) {
      const answer = await once(app, ctx, ReplayDeliveryResponseSchema, req, req.deliveryId, async (trx) => {
        const delivery = await requireDelivery(trx, ctx, req.deliveryId);
        const { run, refusal } = await replayRun(trx, projectOf(ctx), delivery.run_id);
        if (run === undefined) throw new Refusal("REPLAY_REFUSED", { delivery_id: req.deliveryId, detail: refusal });
        return { run: toRun(run) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async replayDeliveries(req, ctx) {
      const given = toDeliveryFilter("filter.", req.filter ?? create(DeliveryFilterSchema)) ?? NOTHING;
      const filter: DeliveryFilter = { ...given, state: given.state ?? "failed" };
      const answer = await once(app, ctx, ReplayDeliveriesResponseSchema, req, "", async (trx) => {
        const within = walkTime(ctx);
        if (req.dryRun) return { matched: await countReplay(trx, projectOf(ctx), filter, within) };
        const wanted = { projectId: projectOf(ctx), filter, runsPerSecond: req.ratePerSecond ?? null, within };
        const { replay, started } = await startReplay(trx, wanted);
        if (!started) throw new Refusal("REPLAY_RUNNING", { replay_id: formatId("rpl", replay.replay_id) });
        return { matched: replay.matched, replay: toReplay(replay) };
      });
      app.wakeups.wake("replays");
      return answer;
    },

    async getReplay(req, ctx) {
      const id = parseId("rpl", req.replayId);
      const replay = id === undefined ? undefined : await findReplay(app.db, projectOf(ctx), id);
      if (replay === undefined) throw new Refusal("REPLAY_NOT_FOUND", { replay_id: req.replayId });
      return { replay: toReplay(replay) };
    },

    async listReplays(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const list = { list: "replays", scope: "", prefix: "rpl" } as const;
      const rows = await listReplays(app.db, projectOf(ctx), lastIdOf(list, req.cursor), limit + 1);
      return toPage(list, rows, limit, (row) => row.replay_id, toReplay);
    },

    cancelReplay: (req, ctx) =>
      once(app, ctx, CancelReplayResponseSchema, req, req.replayId, async (trx) => {
        const id = parseId("rpl", req.replayId);
        const replay = id === undefined ? undefined : await cancelReplay(trx, projectOf(ctx), id);
        if (replay === undefined) throw new Refusal("REPLAY_NOT_FOUND", { replay_id: req.replayId });
        return { replay: toReplay(replay) };
      }),
  };
}

/** The caller's delivery of that id. @throws Refusal DELIVERY_NOT_FOUND */
async function requireDelivery(db: Db, ctx: HandlerContext, deliveryId: string): Promise<DeliveryRow> {
  const id = parseId("dlv", deliveryId);
  const delivery = id === undefined ? undefined : await findDelivery(db, projectOf(ctx), id);
  if (delivery === undefined) throw new Refusal("DELIVERY_NOT_FOUND", { delivery_id: deliveryId });
  return delivery;
}
