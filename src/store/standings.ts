import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { type LineStanding, lineStandings, setAside } from "./line-leases.ts";
import type { PlacedMessage } from "./messages.ts";

/** Which delivery is meant: a message and, where the caller has one, the receipt of its hand-out. */
export interface DeliveryKey {
  readonly messageId: string;
  /** Lease token. Undefined: the current lease, whoever holds it. */
  readonly receipt: string | undefined;
}

/** Why a message is not there to be settled. */
export type Absence = "not_found" | "dead_lettered" | "already_acked";

/** How a delivery stands to the message's newest lease. */
export type Standing = "live" | "expired" | "lease_lost" | "not_leased" | Absence;

export interface Delivery {
  readonly standing: Standing;
  readonly failureCount: number;
  readonly expiryCount: number;
  /** The locked row. Undefined when the message is not kept singly in the queue. */
  readonly row: PlacedMessage | undefined;
}

interface LockedRow extends PlacedMessage {
  readonly lease_token: string | null;
  readonly live: boolean;
  readonly acked: boolean;
  readonly failure_count: number;
  readonly expiry_count: number;
}

/**
 * Locks the messages, in the order of their ids as all that lock many, and says in the order of `keys` how each delivery
 * stands. The fence: every end of a lease goes through it, but for acks in the line. Messages that are claimed there are
 * set aside first. No message may be named twice.
 */
export async function lockDeliveries(trx: Db, queue: QueueRow, keys: readonly DeliveryKey[]): Promise<Delivery[]> {
  if (keys.length === 0) return [];
  const ids = keys.map(({ messageId }) => messageId);
  await setAside(trx, queue, ids);
  const { rows } = await sql<LockedRow>`
    select m.message_id, m.ctid::text as place, m.lease_token, coalesce(m.lease_expires_at > carillon_now(), false) as live,
           m.acked, m.failure_count, m.expiry_count
    from messages m
    where m.project_id = ${queue.project_id} and m.queue_id = ${queue.queue_id} and m.message_id = any(${ids}::uuid[])
    order by m.message_id for update`.execute(trx);
  const found = new Map(rows.map((row) => [row.message_id, row]));
  const absences = await whereabouts(
    trx,
    queue,
    ids.filter((id) => !found.has(id)),
  );
  return keys.map(({ messageId, receipt }) => {
    const row = found.get(messageId);
    return {
      standing: row === undefined ? (absences.get(messageId) ?? "not_found") : standingOf(row, receipt),
      failureCount: row?.failure_count ?? 0,
      expiryCount: row?.expiry_count ?? 0,
      row,
    };
  });
}

function standingOf(row: LockedRow, receipt: string | undefined): Standing {
  if (row.acked) return "already_acked";
  if (receipt !== undefined && row.lease_token !== receipt) return "lease_lost";
  if (row.lease_token === null) return "not_leased";
  return row.live ? "live" : "expired";
}

const ABSENCE_IN_LINE: Record<LineStanding, Absence | "not_leased"> = {
  acked: "already_acked",
  unknown: "not_found",
  waiting: "not_leased",
  claimed: "not_leased",
};

/** How messages stand that are not kept singly in the queue, by their ids. Those that nobody knows of are left out. */
async function whereabouts(
  db: Db,
  queue: QueueRow,
  ids: readonly string[],
): Promise<ReadonlyMap<string, Absence | "not_leased">> {
  if (ids.length === 0) return new Map();
  const { rows } = await sql<{ message_id: string; absence: Absence }>`
    select u.message_id, coalesce(
      (select 'already_acked' from acked_messages a
       where a.project_id = ${queue.project_id} and a.queue_id = ${queue.queue_id} and a.message_id = u.message_id limit 1),
      (select 'dead_lettered' from messages m
       where m.project_id = ${queue.project_id} and m.source_queue_id = ${queue.queue_id}
         and m.message_id = u.message_id limit 1)) as absence
    from unnest(${ids}::uuid[]) as u (message_id)`.execute(db);
  const known = new Map(rows.flatMap((row) => (row.absence === null ? [] : [[row.message_id, row.absence] as const])));
  const inLine = await lineStandings(
    db,
    queue,
    ids.filter((id) => !known.has(id)),
  );
  return new Map([...known, ...Array.from(inLine, ([id, standing]) => [id, ABSENCE_IN_LINE[standing]] as const)]);
}
