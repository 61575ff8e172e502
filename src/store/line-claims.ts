import { randomBytes } from "node:crypto";
import { type RawBuilder, sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { firstHalf, lineUuid } from "../domain/line-ids.ts";
import { JSON_TYPE, lists, type PlacedRow, type PublishedInLine, toPublished } from "./line.ts";
import type { MessageRow, NewMessage } from "./messages.ts";

/** What one consumer asks for. */
export interface ClaimRequest {
  /** Most messages to hand out. */
  readonly limit: number;
  /** Length of the lease. Undefined: the queue's. */
  readonly visibilitySeconds?: number | undefined;
  /** The caller's name for this hand-out, by which it can be asked for again. Empty or undefined for none. */
  readonly requestId?: string | undefined;
}

/** What a look at a queue's line found. */
export interface LineClaim {
  /** Whether messages outside the line can be handed out. */
  readonly setAside: boolean;
  /** Whether the queue is plain no more and what stands in its line is to be moved out of it. */
  readonly draining: boolean;
  /** Whether leases ran out and wait to be taken back. */
  readonly expired: boolean;
  /** The database's time. */
  readonly askedAt: Date;
  /** The messages for each request, in the order of the requests. */
  readonly messages: readonly (readonly MessageRow[])[];
}

/** Before every instant that matters. */
const LONG_AGO = new Date(0);

/** What a row tells of the queue, or of the claim whose messages follow. */
type About =
  | {
      readonly set_aside: boolean;
      readonly draining: boolean;
      readonly expired: boolean;
      readonly asked_ms: number;
    }
  | ClaimMade;

interface ClaimMade {
  /** The place of the request, from 1. */
  readonly request: number;
  readonly lane_id: string;
  readonly token: string;
  readonly lease_expires_ms: number;
}

/** A row that tells about something, or a message. */
type ClaimedRow = { readonly about: About } | ({ readonly about: null } & ClaimedMessage);

interface ClaimedMessage {
  readonly seq: string;
  readonly published_ms: number;
  readonly payload: Buffer;
  readonly unusual: Unusual | null;
}

/** What most messages do not have. */
interface Unusual {
  readonly priority: number;
  readonly group_id: string;
  readonly content_type: string | null;
  readonly headers: Record<string, string> | null;
}

const USUAL: Unusual = { priority: 0, group_id: "", content_type: null, headers: null };
/** One object for all messages, so that they are seen to have the same. */
const NO_HEADERS: Record<string, string> = {};

/**
 * Hands out the next messages of a queue's line, to each request up to its limit. Nothing while the queue is paused.
 * Undefined when there is no such queue. Claims that ended at `expiredSince` or before do not count as `expired`.
 */
export async function claimFromLine(
  db: Db,
  projectId: string,
  queueName: string,
  requests: readonly ClaimRequest[],
  expiredSince: Date = LONG_AGO,
): Promise<LineClaim | undefined> {
  const { rows } = await sql<ClaimedRow>`
    select * from carillon_line_claim(${projectId}, ${queueName}, ${asked(requests)}, ${expiredSince})`.execute(db);
  return toClaim(rows, requests.length);
}

/** What was published, and claimed in the same transaction. */
export interface PublishedAndClaimed {
  readonly placed: PublishedInLine;
  readonly claim: LineClaim;
}

/**
 * Puts plain messages at the end of a queue's line and hands out the next of the line, in one transaction. Undefined, and
 * nothing is done, when there is no such queue or it has no line.
 */
export async function publishAndClaim(
  db: Db,
  projectId: string,
  queueName: string,
  messages: readonly NewMessage[],
  requests: readonly ClaimRequest[],
  expiredSince: Date,
): Promise<PublishedAndClaimed | undefined> {
  const { rows } = await sql<ClaimedRow | { readonly about: PlacedRow }>`
    select * from carillon_line_publish_and_claim(
      ${projectId}, ${queueName}, ${lists(messages)}, ${asked(requests)}, ${expiredSince})`.execute(db);
  const [placed, ...claimed] = rows as readonly [{ readonly about: PlacedRow }?, ...ClaimedRow[]];
  const claim = toClaim(claimed, requests.length);
  if (placed === undefined || claim === undefined) return undefined;
  return { placed: toPublished(placed.about, messages.length), claim };
}

/** The arguments that describe requests, as carillon_line_claim takes them. */
function asked(requests: readonly ClaimRequest[]): RawBuilder<unknown> {
  return sql`${requests.map((r) => r.limit)}::int[], ${requests.map((r) => r.visibilitySeconds ?? null)}::int[],
    ${requests.map(() => randomBytes(8).readBigInt64BE())}::bigint[], ${requests.map((r) => r.requestId || null)}::text[]`;
}

function toClaim(rows: readonly ClaimedRow[], count: number): LineClaim | undefined {
  const messages = Array.from({ length: count }, (): MessageRow[] => []);
  let claim: LineClaim | undefined;
  let made: MessageMaker | undefined;
  let into: MessageRow[] | undefined;
  for (const row of rows) {
    if (row.about === null) {
      if (made !== undefined) into?.push(made.message(row));
    } else if ("request" in row.about) {
      made = new MessageMaker(row.about);
      into = messages[row.about.request - 1];
    } else {
      const { set_aside: setAside, draining, expired, asked_ms: askedMs } = row.about;
      claim = { setAside, draining, expired, askedAt: new Date(askedMs), messages };
    }
  }
  return claim;
}

/** Makes the rows of the messages of one claim. What they have in common they share. */
class MessageMaker {
  readonly #ids: string;
  readonly #receipts: string;
  readonly #leaseExpiresAt: Date;
  #publishedAt = new Date(0);

  constructor(claim: Omit<ClaimMade, "request">) {
    this.#ids = firstHalf(BigInt(claim.lane_id));
    this.#receipts = firstHalf(BigInt(claim.token));
    this.#leaseExpiresAt = new Date(claim.lease_expires_ms);
  }

  message({ seq, published_ms: publishedMs, payload, unusual }: ClaimedMessage): MessageRow {
    // Messages of one statement were published at one instant.
    if (publishedMs !== this.#publishedAt.getTime()) this.#publishedAt = new Date(publishedMs);
    const { priority, group_id, content_type, headers } = unusual ?? USUAL;
    return {
      message_id: lineUuid(this.#ids, Number(seq)),
      payload,
      content_type: content_type ?? JSON_TYPE,
      headers: headers ?? NO_HEADERS,
      group_id,
      priority,
      receive_count: 1,
      failure_count: 0,
      return_count: 0,
      expiry_count: 0,
      published_at: this.#publishedAt,
      visible_at: this.#publishedAt,
      lease_token: lineUuid(this.#receipts, Number(seq)),
      lease_expires_at: this.#leaseExpiresAt,
      error: null,
      dead_reason: null,
      dead_lettered_at: null,
      source_queue: null,
    };
  }
}

/** The messages that an earlier hand-out with this request id claimed and that are still under that lease. */
export async function repeatClaims(db: Db, queue: QueueRow, requestId: string): Promise<MessageRow[]> {
  const { rows } = await sql<ClaimedMessage & Omit<ClaimMade, "request">>`
    select m.lane_id, m.seq, m.payload, c.token, jsonb_build_object('priority', m.priority, 'group_id', m.group_id,
           'content_type', m.content_type, 'headers', m.headers) as unusual,
           trunc(date_part('epoch', m.published_at) * 1000) as published_ms,
           trunc(date_part('epoch', c.expires_at) * 1000) as lease_expires_ms
    from line_claims c
    join line_messages m on m.lane_id = c.lane_id and m.seq > c.lo and m.seq <= c.hi and m.seq = any(c.open_seqs)
    where c.lane_id = ${queue.lane_id} and c.request = ${requestId} and not c.settled and c.expires_at > carillon_now()
    order by m.seq`.execute(db);
  return rows.map((row) => new MessageMaker(row).message(row));
}
