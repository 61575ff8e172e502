import { type Kysely, sql } from "kysely";

/** Claims and acks of the line cost what their ranges cost, and little for each message. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/** Statistics of tables that fill and empty are long past when they are used: each row is looked up by its whole key. */
const BY_INDEX = [
  "enable_seqscan = off",
  "enable_bitmapscan = off",
  "enable_hashjoin = off",
  "enable_mergejoin = off",
  "enable_material = off",
  "jit = off",
]
  .map((setting) => `set ${setting}`)
  .join(" ");

const STATEMENTS = [
  "drop function carillon_line_publish_and_claim",
  "drop function carillon_line_claim",
  "drop function carillon_line_settle",

  // Hands out the next of the line: to each request up to its limit, in the order of the requests. A row with `about`
  // tells of the queue, which is the first, or of a claim, and then the claim's messages follow. No row where the queue is
  // missing. Numbers of 64 bits are text in it, instants are milliseconds since 1970.
  //   set_aside: messages that are not in the line can be handed out.
  //   draining: messages stand in the line of a queue that has none any more; carillon_line_drain is to be called.
  //   expired: leases ran out and wait to be taken back; those of claims that ended at p_expired_since or before are the
  //   reaper's, so that the look does not walk over what it has seen.
  // `unusual` has what most messages do not have.
  `create function carillon_line_claim(
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
       'set_aside', exists (
         select from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
           and m.lease_expires_at is null and m.rank <= carillon_now() and m.visible_at <= carillon_now()),
       'draining', head is not null and not plain,
       'expired', exists (
           select from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
             and m.lease_expires_at <= carillon_now())
         or exists (
           select from line_claims c where not c.settled and c.expires_at <= carillon_now()
             and c.expires_at > p_expired_since and c.lane_id = q.lane_id),
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

  // Both in one transaction: what consumers wait for is theirs when it is published. The first row tells where it was put,
  // the others are those of the claim; no row where the queue is missing or has no line.
  `create function carillon_line_publish_and_claim(
     p_project uuid, p_queue text, p_bytes bytea, p_lengths int[], p_priorities smallint[], p_group_ids text[],
     p_content_types text[], p_headers text[], p_limits int[], p_seconds int[], p_tokens bigint[], p_requests text[],
     p_expired_since timestamptz
   ) returns table (about jsonb, seq bigint, published_ms float8, payload bytea, unusual jsonb)
   language plpgsql as $$
   declare
     placed record;
   begin
     select * into placed from carillon_line_publish(
       p_project, p_queue, p_bytes, p_lengths, p_priorities, p_group_ids, p_content_types, p_headers);
     if placed.lane_id is null then return; end if;
     about := jsonb_build_object(
       'lane_id', placed.lane_id::text, 'first_seq', placed.first_seq::text, 'subscribed', placed.subscribed);
     return next;
     return query select c.* from carillon_line_claim(
       p_project, p_queue, p_limits, p_seconds, p_tokens, p_requests, p_expired_since) c;
   end $$`,

  // Takes ranges of numbers out of the claims that have them open. The ranges are in the order of the line, each within one
  // claim, with the claim's token or null. Returns for each range of which something was taken its place from 1, whether
  // the lease had ended, and the numbers that were taken, or null for all of them. A range whose token differs is left. A
  // claim with nothing left open is settled, and its messages leave the line. Locks claims in the order of the line, as
  // all that wait for several.
  `create function carillon_line_settle(
     p_lane bigint, p_firsts bigint[], p_lasts bigint[], p_tokens bigint[], p_aside boolean default false
   ) returns table (place int, late boolean, seqs bigint[]) language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     n int := cardinality(p_firsts);
     i int := 1;
     j int;
     claim line_claims%rowtype;
     good bigint[];
     rest bigint[];
   begin
     while i <= n loop
       -- Claim by claim, because no statistics can then make a plan of it that reads more than these.
       select * into claim from line_claims c where c.lane_id = p_lane and c.hi >= p_firsts[i] order by c.hi limit 1 for update;
       exit when not found;
       j := i;
       while p_firsts[j + 1] <= claim.hi loop j := j + 1; end loop;
       if i = j and coalesce(p_tokens[i] = claim.token, true)
          and claim.open_seqs = array(select generate_series(p_firsts[i], p_lasts[i])) then
         good := claim.open_seqs;
         rest := '{}';
       else
         good := array(
           select unnest(claim.open_seqs) intersect
           select generate_series(r.first, r.last) from unnest(p_firsts[i:j], p_lasts[i:j], p_tokens[i:j]) as r (first, last, token)
           where r.token is null or r.token = claim.token
           order by 1);
         rest := array(select unnest(claim.open_seqs) except select unnest(good) order by 1);
       end if;
       if good <> '{}' then
         update line_claims c
         set open_seqs = rest, settled = (rest = '{}'),
             aside_seqs = case when p_aside then c.aside_seqs || good else c.aside_seqs end
         where c.lane_id = p_lane and c.hi = claim.hi;
         if rest = '{}' then
           delete from line_messages m where m.lane_id = p_lane and m.seq > claim.lo and m.seq <= claim.hi;
         end if;
         return query
         select i + r.ord::int - 1, claim.expires_at <= carillon_now(),
                case when cardinality(t.seqs) <= r.last - r.first then t.seqs end
         from unnest(p_firsts[i:j], p_lasts[i:j], p_tokens[i:j]) with ordinality as r (first, last, token, ord)
         cross join lateral (
           select case
             when rest = '{}' and i = j then good
             when r.first = r.last then case when r.first = any(good) then array[r.first] else '{}' end
             else array(select s from unnest(good) s where s between r.first and r.last)
           end as seqs) t
         where t.seqs <> '{}' and (r.token is null or r.token = claim.token);
       end if;
       i := j + 1;
     end loop;
   end $$`,

  // Moves messages that are open in a claim to where messages are kept one by one, with the lease that they have, and
  // returns how many it moved. From there they can be given back, extended and buried singly.
  `create or replace function carillon_line_set_aside(
     p_project uuid, p_queue_id uuid, p_lane bigint, p_retention_days int, p_seqs bigint[]
   ) returns int language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     moved int;
     sorted bigint[] := array(select distinct unnest(p_seqs) order by 1);
   begin
     with given as materialized (
       select u.seq, (
         select c.hi from line_claims c where c.lane_id = p_lane and c.hi >= u.seq order by c.hi limit 1) as hi
       from unnest(sorted) u (seq)
     ),
     locked as materialized (
       select c.* from (select distinct hi from given where hi is not null order by hi) g
       cross join lateral (select * from line_claims c where c.lane_id = p_lane and c.hi = g.hi for update) c
     ),
     open as materialized (
       select m.*, g.token, g.expires_at, g.request, carillon_pair(m.lane_id, m.seq) as message_id
       from (
         select given.seq, l.token, l.expires_at, l.request from given join locked l on l.hi = given.hi
         where given.seq = any(l.open_seqs)
       ) g
       cross join lateral (select * from line_messages m where m.lane_id = p_lane and m.seq = g.seq limit 1) m
     ),
     bodies as (
       insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
       select p_project, p_queue_id, o.message_id, o.payload, coalesce(o.content_type, 'application/json'),
              coalesce(o.headers, '{}') from open o
     )
     insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, lease_token,
                           lease_expires_at, lease_request, receive_count, published_at, expires_at)
     select p_project, p_queue_id, o.message_id, o.seq, o.group_id, o.published_at, o.priority, o.published_at,
            carillon_pair(o.token, o.seq), o.expires_at, o.request, 1, o.published_at,
            o.published_at + make_interval(days => p_retention_days)
     from open o;
     get diagnostics moved = row_count;
     perform carillon_line_settle(p_lane, sorted, sorted, null, true);
     return moved;
   end $$`,
];
