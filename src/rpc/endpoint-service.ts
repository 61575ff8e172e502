import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  DisableEndpointResponseSchema,
  EnableEndpointResponseSchema,
  type EndpointService,
  UpdateEndpointRequestSchema,
  UpdateEndpointResponseSchema,
} from "../../gen/scheduling/v1/endpoint_service_pb.js";
import type { Db, EndpointRow } from "../db/schema.ts";
import { endpointOf } from "../domain/endpoint.ts";
import { parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import {
  disableEndpoint,
  type EndpointView,
  enableEndpoint,
  findEndpoint,
  limitEndpoint,
  listEndpoints,
  lockEndpoint,
} from "../store/endpoints.ts";
import { type AppContext, projectOf } from "./context.ts";
import { fromEndpointState, toEndpoint } from "./convert-endpoint.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { writtenFields } from "./update-mask.ts";

/** The calls on the receivers of a project's requests. */
export function endpointService(app: AppContext): ServiceImpl<typeof EndpointService> {
  /** Tells the workers of this node and others that something may go now. */
  const wake = (): void => {
    app.wakeups.wake("runs");
    app.wakeups.wake("pushes");
  };
  return {
    async listEndpoints(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const state = fromEndpointState(req.state);
      const endpointId = req.url === "" ? undefined : endpointOf(URL.parse(req.url)?.href ?? req.url).endpointId;
      const list = { list: "endpoints", scope: `${state ?? ""} ${endpointId ?? ""}`, prefix: "ep" } as const;
      const before = lastIdOf(list, req.cursor);
      const views = await listEndpoints(app.db, projectOf(ctx), { state, endpointId }, before, limit + 1);
      return toPage(list, views, limit, ({ endpoint_id }) => endpoint_id, toEndpoint);
    },

    getEndpoint: async (req, ctx) => ({ endpoint: toEndpoint(await requireEndpoint(app.db, ctx, req.endpointId)) }),

    async updateEndpoint(req, ctx) {
      const written = writtenFields(UpdateEndpointRequestSchema, req);
      const answer = await once(app, ctx, UpdateEndpointResponseSchema, req, req.endpointId, async (trx) => {
        const { endpoint } = await requireLocked(trx, ctx, req.endpointId);
        if (written.size > 0) {
          await limitEndpoint(trx, endpoint, {
            ...(written.has("max_concurrency") && { max_concurrency: req.maxConcurrency ?? null }),
            ...(written.has("max_rate") && { max_rate: req.maxRate ?? null }),
          });
        }
        return { endpoint: toEndpoint(await requireEndpoint(trx, ctx, req.endpointId)) };
      });
      wake();
      return answer;
    },

    async enableEndpoint(req, ctx) {
      const answer = await once(app, ctx, EnableEndpointResponseSchema, req, req.endpointId, async (trx) => {
        const { endpoint, nowMs } = await requireLocked(trx, ctx, req.endpointId);
        await enableEndpoint(trx, endpoint, nowMs);
        return { endpoint: toEndpoint(await requireEndpoint(trx, ctx, req.endpointId)) };
      });
      wake();
      return answer;
    },

    disableEndpoint: (req, ctx) =>
      once(app, ctx, DisableEndpointResponseSchema, req, req.endpointId, async (trx) => {
        const { endpoint, nowMs } = await requireLocked(trx, ctx, req.endpointId);
        await disableEndpoint(trx, endpoint, req.reason || "disabled by a call", nowMs);
        return { endpoint: toEndpoint(await requireEndpoint(trx, ctx, req.endpointId)) };
      }),
  };
}

/** The caller's endpoint. @throws Refusal ENDPOINT_NOT_FOUND */
async function requireEndpoint(db: Db, ctx: HandlerContext, id: string): Promise<EndpointView> {
  const endpointId = parseId("ep", id);
  const view = endpointId === undefined ? undefined : await findEndpoint(db, projectOf(ctx), endpointId);
  if (view === undefined) throw new Refusal("ENDPOINT_NOT_FOUND", { endpoint_id: id });
  return view;
}

/** The caller's endpoint, locked. @throws Refusal ENDPOINT_NOT_FOUND */
async function requireLocked(
  trx: Db,
  ctx: HandlerContext,
  id: string,
): Promise<{ readonly endpoint: EndpointRow; readonly nowMs: number }> {
  const endpointId = parseId("ep", id);
  const locked = endpointId === undefined ? undefined : await lockEndpoint(trx, projectOf(ctx), endpointId);
  if (locked === undefined) throw new Refusal("ENDPOINT_NOT_FOUND", { endpoint_id: id });
  return locked;
}
