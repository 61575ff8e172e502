import { sql } from "kysely";
import type { Db, EndpointRow } from "../db/schema.ts";
import { admit } from "../domain/admission.ts";
import { controlOf, requestsUnderWay, writeControl } from "./endpoints.ts";

/** What may be sent to an endpoint now. */
export interface Grant {
  /** How many of the wanted requests. */
  readonly granted: number;
  /** The one that is granted is a probe, whose end decides over the breaker. */
  readonly probe: boolean;
}

/**
 * Admits requests to the project's endpoints, given as the number wanted of each, in the transaction that records the
 * attempts: the lock of the endpoint's row makes the limits exact over all nodes. Endpoints that are not in the answer are
 * not guarded: whatever is wanted may go.
 */
export async function admitRequests(
  trx: Db,
  projectId: string,
  wanted: ReadonlyMap<string, number>,
): Promise<Map<string, Grant>> {
  const { rows } = await sql<EndpointRow & { now: Date }>`
    select *, carillon_now() as now from endpoints
    where project_id = ${projectId} and endpoint_id = any(${[...wanted.keys()]}::uuid[]) and guarded
    order by endpoint_id for no key update`.execute(trx);
  const limited = rows.filter(({ max_concurrency }) => max_concurrency !== null).map(({ endpoint_id }) => endpoint_id);
  const running = limited.length === 0 ? new Map<string, number>() : await countRunning(trx, projectId, limited);

  const grants = new Map<string, Grant>();
  for (const { now, ...endpoint } of rows) {
    const count = wanted.get(endpoint.endpoint_id) ?? 0;
    const request = { count, running: running.get(endpoint.endpoint_id) ?? 0 };
    const { granted, probe, changes, readyAtMs } = admit(controlOf(endpoint), request, now.getTime());
    grants.set(endpoint.endpoint_id, { granted, probe });
    await writeControl(trx, endpoint, changes, {
      reason: endpoint.reason ?? undefined,
      readyAtMs,
      nowMs: now.getTime(),
    });
  }
  return grants;
}

/** Requests under way to each of the endpoints. Those whose lease has run out do not count: their node is dead. */
async function countRunning(trx: Db, projectId: string, endpointIds: readonly string[]): Promise<Map<string, number>> {
  const { rows } = await sql<{ endpoint_id: string; running: number }>`
    select endpoint_id, ${requestsUnderWay} as running from runs r
    where state = 'running' and lease_expires_at > carillon_now() and project_id = ${projectId}
      and endpoint_id = any(${endpointIds}::uuid[])
    group by endpoint_id`.execute(trx);
  return new Map(rows.map(({ endpoint_id, running }) => [endpoint_id, running]));
}

/** Says that there is room again under the concurrency limits of these endpoints. False when nothing waits for that. */
export async function releaseRoom(trx: Db, projectId: string, endpointIds: readonly string[]): Promise<boolean> {
  const { numAffectedRows } = await sql`
    update endpoints set ready_at = carillon_now()
    where project_id = ${projectId} and endpoint_id = any(${endpointIds}::uuid[])
      and max_concurrency is not null and state = 'closed' and paused_until is null
      and pace_rate is null and max_rate is null and ready_at > carillon_now()`.execute(trx);
  return numAffectedRows !== 0n;
}
