import { type Kysely, sql } from "kysely";

/** A look for leases that ran out reads what has run out and no more, however many leases there are. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/**
 * Plans outlive what the planner knew of tables that fill and empty, and each index that begins with the queue may seem
 * right while a queue is small. Without sorts only the index with the order that is asked for is left.
 */
const BY_INDEX = [
  "enable_seqscan = off",
  "enable_bitmapscan = off",
  "enable_hashjoin = off",
  "enable_mergejoin = off",
  "enable_material = off",
  "enable_sort = off",
  "enable_incremental_sort = off",
  "jit = off",
]
  .map((setting) => `set ${setting}`)
  .join(" ");

/**
 * Whether leases of the queue q ran out after an instant, in its line or outside. By scalar subqueries: in an `exists` an
 * order is ignored.
 */
const hasLapsed = (since: string) => `coalesce(
         (select true from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
            and m.lease_expires_at > ${since} and m.lease_expires_at <= carillon_now() order by m.lease_expires_at limit 1),
         (select true from line_claims c where c.lane_id = q.lane_id and not c.settled
            and c.expires_at > ${since} and c.expires_at <= carillon_now() order by c.expires_at limit 1),
         false)`;

const STATEMENTS = [
  // The places, from 1, of those of the queues whose leases ran out, each after its instant. One call for all of them,
  // because the settings cost more than a look.
  `create function carillon_lapsed(p_projects uuid[], p_queues text[], p_since timestamptz[]) returns setof bigint
   language plpgsql stable ${BY_INDEX} as $$
   begin
     return query
     select w.place from unnest(p_projects, p_queues, p_since) with ordinality as w (project_id, name, since, place)
     join queues q on q.project_id = w.project_id and q.name = w.name
     where ${hasLapsed("w.since")};
   end $$`,

  // Hands out the next of the line: to each request up to its limit, in the order of the requests. A row with `about`
  // tells of the queue, which is the first, or of a claim, and then the claim's messages follow. No row where the queue is
  // missing. Numbers of 64 bits are text in it, instants are milliseconds since 1970.
  //   set_aside: messages that are not in the line can be handed out.
  //   draining: messages stand in the line of a queue that has none any more; carillon_line_drain is to be called.
  //   expired: leases ran out and wait to be taken back; those that ended at p_expired_since or before are the
  //   reaper's, so that the look does not walk over what it has seen.
  // `unusual` has what most messages do not have.
  `create or replace function carillon_line_claim(
     p_project uuid, p_queue text, p_limits int[], p_seconds int[], p_tokens bigint[], p_requests text[],
     p_expired_since timestamptz
   ) returns table (about jsonb, seq bigint, published_ms float8, payload bytea, unusual jsonb)
   language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     q queues%rowtype;
     head timestamptz;
     plain boolean;
     asked record;
     taken_to bigint;
     last bigint;
     upto bigint;
     ends_at timestamptz;
   begin
     select * into q from queues where queues.project_id = p_project and queues.name = p_queue;
     if not found then return; end if;
     plain := carillon_uses_line(q);
     select m.published_at into head from line_messages m
     where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) order by m.seq limit 1;
     about := jsonb_build_object(
       'set_aside', coalesce((
         select true from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
           and m.lease_expires_at is null and m.rank <= carillon_now() and m.visible_at <= carillon_now()
         order by m.rank limit 1), false),
       'draining', head is not null and not plain,
       'expired', ${hasLapsed("p_expired_since")},
       'asked_ms', trunc(date_part('epoch', carillon_now()) * 1000));
     return next;
     if q.paused or head is null or not plain then return; end if;
     perform pg_advisory_xact_lock(q.lane_id * 2 + 1);
     -- Whoever gives the queue limits holds this lock until they count.
     select * into q from queues where queues.project_id = p_project and queues.name = p_queue;
     if q.paused or not carillon_uses_line(q) then return; end if;
     if head <= carillon_now() - make_interval(days => q.message_retention_days) then
       perform carillon_line_drop(q.lane_id, carillon_now() - make_interval(days => q.message_retention_days), 10000);
     end if;
     taken_to := carillon_line_cursor(q.lane_id);
     select m.seq into last from line_messages m
     where m.lane_id = q.lane_id and m.seq > taken_to order by m.seq desc limit 1;
     for asked in
       select * from unnest(p_limits, p_seconds, p_tokens, p_requests) with ordinality as a (most, seconds, token, request, place)
       order by a.place
     loop
       exit when last is null or taken_to >= last;
       continue when asked.most <= 0;
       upto := least(taken_to + asked.most, last);
       ends_at := carillon_now() + make_interval(secs => coalesce(asked.seconds, q.visibility_timeout_seconds));
       insert into line_claims (lane_id, hi, lo, open_seqs, settled, token, request, first_published_at, claimed_at, expires_at)
       select q.lane_id, upto, taken_to, array(select generate_series(taken_to + 1, upto)), false, asked.token,
              asked.request, m.published_at, carillon_now(), ends_at
       from line_messages m where m.lane_id = q.lane_id and m.seq = taken_to + 1;
       about := jsonb_build_object(
         'request', asked.place, 'lane_id', q.lane_id::text, 'token', asked.token::text,
         'lease_expires_ms', trunc(date_part('epoch', ends_at) * 1000));
       return next;
       return query
       select null::jsonb, m.seq, trunc(date_part('epoch', m.published_at) * 1000), m.payload,
              case when m.priority <> 0 or m.group_id <> '' or m.content_type is not null or m.headers is not null then
                jsonb_build_object('priority', m.priority, 'group_id', m.group_id, 'content_type', m.content_type,
                                   'headers', m.headers)
              end
       from line_messages m where m.lane_id = q.lane_id and m.seq > taken_to and m.seq <= upto order by m.seq;
       taken_to := upto;
     end loop;
   end $$`,
];
