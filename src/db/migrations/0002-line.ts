import { type Kysely, sql } from "kysely";

/**
 * The line: an append-only log for each plain queue, handed out by ranges.
 *
 * No row of the line is ever updated, and no claim more than a few times, so an old open transaction, which keeps dead
 * rows from being removed, has nothing to slow down: publishing and claiming begin where the newest claim ends.
 *
 * The numbers of a lane are dense and in the order of the commits, because publishers of a lane take turns until they
 * commit; so do claimers. Both locks are held for one statement and its commit only.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/**
 * What the planner knows of a table that fills and empties may be long past; these statements are only ever right where
 * each row is looked up by its whole key.
 */
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
  `alter table queues add column lane_id bigint generated always as identity unique`,
  `alter table dropped_lanes add column lane_id bigint`,

  // Whether messages of a queue may stand in its line: each is like every other, but for its turn.
  `create function carillon_uses_line(q queues) returns boolean language sql immutable as $$
     select q.type = 'standard' and not q.enable_priority
   $$`,

  // content_type and headers are null where they are application/json and none.
  `create table line_messages (
     lane_id bigint not null,
     seq bigint not null,
     published_at timestamptz not null,
     priority smallint not null,
     group_id text not null,
     content_type text,
     headers jsonb,
     payload bytea not null,
     primary key (lane_id, seq)
   ) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2)`,

  // One row a hand-out: the numbers after lo up to hi. The newest of a lane is the lane's cursor. A settled claim has no
  // number open and no row in the line; it stays for a while to tell what was acked, which is what was not set aside.
  `create table line_claims (
     lane_id bigint not null,
     hi bigint not null,
     lo bigint not null,
     open_seqs bigint[] not null,
     aside_seqs bigint[],
     settled boolean not null,
     purged boolean not null default false,
     token bigint not null,
     request text,
     first_published_at timestamptz not null,
     claimed_at timestamptz not null,
     expires_at timestamptz not null,
     primary key (lane_id, hi)
   ) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)`,
  `create index line_claims_open_idx on line_claims (expires_at) where not settled`,
  `create index line_claims_request_idx on line_claims (lane_id, request) where request is not null`,
  `create index line_claims_age_idx on line_claims using brin (claimed_at) with (autosummarize = on)`,

  // A message's id is its lane and its number, a receipt is the claim's token and the number.
  `create function carillon_pair(high bigint, low bigint) returns uuid language sql immutable parallel safe as $$
     select (lpad(to_hex(high), 16, '0') || lpad(to_hex(low), 16, '0'))::uuid
   $$`,

  `create function carillon_line_cursor(p_lane bigint) returns bigint language sql stable as $$
     select coalesce((select hi from line_claims where lane_id = p_lane order by hi desc limit 1), 0)
   $$`,

  // Whether a message waits in a line or is open in a claim of it.
  `create function carillon_line_holds(p_lane bigint, p_message uuid) returns boolean language sql stable as $$
     select p_message = carillon_pair(p_lane, m.seq) and coalesce(m.seq = any(c.open_seqs), true)
     from (select ('x' || right(replace(p_message::text, '-', ''), 16))::bit(64)::bigint as seq) m
     left join lateral (
       select * from line_claims where lane_id = p_lane and hi >= m.seq order by hi limit 1) c on true
   $$`,

  // Puts messages at the end of the line of a queue and returns where it put them, and whether the queue has push
  // subscriptions; no row where the queue is missing or has no line. Payloads come as one string of bytes with the length
  // of each; the other lists may be null.
  `create function carillon_line_publish(
     p_project uuid, p_queue text, p_bytes bytea, p_lengths int[], p_priorities smallint[], p_group_ids text[],
     p_content_types text[], p_headers text[]
   ) returns table (lane_id bigint, first_seq bigint, subscribed boolean) language plpgsql ${BY_INDEX} as $$
   declare
     lane bigint;
     pushed boolean;
     base bigint;
   begin
     select q.lane_id, exists (select from push_subscriptions s where s.project_id = q.project_id and s.queue_id = q.queue_id)
     into lane, pushed from queues q where q.project_id = p_project and q.name = p_queue and carillon_uses_line(q);
     if lane is null then return; end if;
     perform pg_advisory_xact_lock(lane * 2);
     -- In one statement, so that a claim which commits meanwhile cannot hide both the rows and itself.
     select greatest(carillon_line_cursor(lane), coalesce(
       (select m.seq from line_messages m where m.lane_id = lane and m.seq > carillon_line_cursor(lane)
        order by m.seq desc limit 1), 0)) into base;
     insert into line_messages
     select lane, base + g.ord, carillon_now(), coalesce(g.priority, 0), coalesce(g.group_id, ''), g.content_type,
            g.headers::jsonb, substring(p_bytes from (g.upto - g.length)::int + 1 for g.length)
     from (
       select given.*, sum(given.length) over (order by given.ord) as upto
       from unnest(p_lengths, p_priorities, p_group_ids, p_content_types, p_headers)
         with ordinality as given (length, priority, group_id, content_type, headers, ord)
     ) g;
     return query select lane, base + 1, pushed;
   end $$`,

  // Hands out the next of the line: to each request up to its limit, in the order of the requests. The first row tells of
  // the queue and has no request; no row where the queue is missing.
  //   set_aside: messages that are not in the line can be handed out.
  //   draining: messages stand in the line of a queue that has none any more; carillon_line_drain is to be called.
  //   expired: leases ran out and wait to be taken back; those of claims that ended at p_expired_since or before are the
  //   reaper's, so that the look does not walk over what it has seen.
  `create function carillon_line_claim(
     p_project uuid, p_queue text, p_limits int[], p_seconds int[], p_tokens bigint[], p_requests text[],
     p_expired_since timestamptz
   ) returns table (
     lane_id bigint, set_aside boolean, draining boolean, expired boolean, asked_at timestamptz,
     request int, seq bigint, token bigint, published_at timestamptz, lease_expires_at timestamptz, priority smallint,
     group_id text, content_type text, headers jsonb, payload bytea
   ) language plpgsql ${BY_INDEX} as $$
   declare
     q queues%rowtype;
     head timestamptz;
     plain boolean;
   begin
     select * into q from queues where queues.project_id = p_project and queues.name = p_queue;
     if not found then return; end if;
     plain := carillon_uses_line(q);
     select m.published_at into head from line_messages m
     where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) order by m.seq limit 1;
     return query select q.lane_id,
       exists (select from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
               and m.lease_expires_at is null and m.rank <= carillon_now() and m.visible_at <= carillon_now()),
       head is not null and not plain,
       exists (select from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
               and m.lease_expires_at <= carillon_now())
         or exists (select from line_claims c where not c.settled and c.expires_at <= carillon_now()
                    and c.expires_at > p_expired_since and c.lane_id = q.lane_id),
       carillon_now(), null::int, null::bigint, null::bigint, null::timestamptz, null::timestamptz, null::smallint,
       null::text, null::text, null::jsonb, null::bytea;
     if q.paused or head is null or not plain then return; end if;
     perform pg_advisory_xact_lock(q.lane_id * 2 + 1);
     if head <= carillon_now() - make_interval(days => q.message_retention_days) then
       perform carillon_line_drop(q.lane_id, carillon_now() - make_interval(days => q.message_retention_days), 10000);
     end if;
     return query
     with asked as (
       select ord::int as ord, a.seconds, a.token, a.request,
              sum(a.most) over (order by ord) - a.most as after_n, sum(a.most) over (order by ord) as upto_n
       from unnest(p_limits, p_seconds, p_tokens, p_requests) with ordinality as a (most, seconds, token, request, ord)
     ),
     taken as materialized (
       select m.*, row_number() over (order by m.seq) as n from line_messages m
       where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id)
       order by m.seq limit (select max(upto_n) from asked)
     ),
     dealt as materialized (
       select t.*, a.ord, a.token,
              carillon_now() + make_interval(secs => coalesce(a.seconds, q.visibility_timeout_seconds)) as until, a.request
       from taken t join asked a on t.n > a.after_n and t.n <= a.upto_n
     ),
     claims as (
       insert into line_claims (lane_id, hi, lo, open_seqs, settled, token, request, first_published_at, claimed_at, expires_at)
       select q.lane_id, max(d.seq), min(d.seq) - 1, array_agg(d.seq), false, d.token, d.request, min(d.published_at),
              carillon_now(), d.until
       from dealt d group by d.ord, d.token, d.request, d.until
     )
     select q.lane_id, null::boolean, null::boolean, null::boolean, null::timestamptz,
            d.ord, d.seq, d.token, d.published_at, d.until, d.priority, d.group_id, d.content_type, d.headers, d.payload
     from dealt d order by d.seq;
   end $$`,

  // How many of those that wait in a line were published after the given instant: by halving, because their numbers are
  // dense and in the order of publishing.
  `create function carillon_line_published_since(p_lane bigint, p_at timestamptz) returns bigint
   language plpgsql stable ${BY_INDEX} as $$
   declare
     last bigint;
     before bigint := carillon_line_cursor(p_lane);
     after bigint;
     middle bigint;
   begin
     select m.seq into last from line_messages m where m.lane_id = p_lane and m.seq > before order by m.seq desc limit 1;
     if last is null then return 0; end if;
     after := last + 1;
     while after - before > 1 loop
       middle := (after + before) / 2;
       if exists (select from line_messages m where m.lane_id = p_lane and m.seq = middle and m.published_at <= p_at) then
         before := middle;
       else
         after := middle;
       end if;
     end loop;
     return last - before;
   end $$`,

  // Both in one transaction: what consumers wait for is theirs when it is published.
  `create function carillon_line_publish_and_claim(
     p_project uuid, p_queue text, p_bytes bytea, p_lengths int[], p_priorities smallint[], p_group_ids text[],
     p_content_types text[], p_headers text[], p_limits int[], p_seconds int[], p_tokens bigint[], p_requests text[],
     p_expired_since timestamptz
   ) returns table (
     first_seq bigint, subscribed boolean,
     lane_id bigint, set_aside boolean, draining boolean, expired boolean, asked_at timestamptz,
     request int, seq bigint, token bigint, published_at timestamptz, lease_expires_at timestamptz, priority smallint,
     group_id text, content_type text, headers jsonb, payload bytea
   ) language plpgsql as $$
   declare
     placed record;
   begin
     select * into placed from carillon_line_publish(
       p_project, p_queue, p_bytes, p_lengths, p_priorities, p_group_ids, p_content_types, p_headers);
     if placed.lane_id is null then return; end if;
     return query select placed.first_seq, placed.subscribed, c.* from carillon_line_claim(
       p_project, p_queue, p_limits, p_seconds, p_tokens, p_requests, p_expired_since) c;
   end $$`,

  // Takes what was published at the given instant or before off the front of a line, up to p_limit messages, and returns
  // how many. Needs the claimers' lock.
  `create function carillon_line_drop(p_lane bigint, p_until timestamptz, p_limit int) returns int
   language plpgsql ${BY_INDEX} as $$
   declare
     lo bigint := carillon_line_cursor(p_lane);
     hi bigint;
   begin
     select max(old.seq) into hi from (
       select m.seq, m.published_at from line_messages m where m.lane_id = p_lane and m.seq > lo order by m.seq limit p_limit
     ) old where old.published_at <= p_until;
     if hi is null then return 0; end if;
     insert into line_claims (lane_id, hi, lo, open_seqs, settled, purged, token, first_published_at, claimed_at, expires_at)
     values (p_lane, hi, lo, '{}', true, true, 0, p_until, carillon_now(), carillon_now());
     delete from line_messages m where m.lane_id = p_lane and m.seq > lo and m.seq <= hi;
     return hi - lo;
   end $$`,

  // Takes numbers out of the claims that have them open and returns them, each with the token given and whether its lease
  // had ended; a number whose token differs is left. A claim with nothing left open is settled, and its messages leave the line. Locks claims
  // in the order of the line, as all that wait for several.
  `create function carillon_line_settle(p_lane bigint, p_seqs bigint[], p_tokens bigint[], p_aside boolean default false)
   returns table (seq bigint, token bigint, late boolean) language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     given record;
     claim record;
     good bigint[];
     rest bigint[];
   begin
     -- Claim by claim, because no statistics can then make a plan of it that reads more than these.
     for given in
       select g.hi, array_agg(g.seq) as seqs, array_agg(g.token) as tokens
       from (
         select u.seq, u.token, (
           select c.hi from line_claims c where c.lane_id = p_lane and c.hi >= u.seq order by c.hi limit 1) as hi
         from (select distinct seq, token from unnest(p_seqs, p_tokens) as u (seq, token)) u
       ) g
       where g.hi is not null group by g.hi order by g.hi
     loop
       select c.lo, c.open_seqs, c.token, c.expires_at into claim
       from line_claims c where c.lane_id = p_lane and c.hi = given.hi for update;
       good := array(
         select unnest(claim.open_seqs) intersect
         select u.seq from unnest(given.seqs, given.tokens) as u (seq, token)
         where u.token is null or u.token = claim.token);
       continue when good = '{}';
       rest := array(select unnest(claim.open_seqs) except select unnest(good));
       update line_claims c
       set open_seqs = rest, settled = (rest = '{}'),
           aside_seqs = case when p_aside then c.aside_seqs || good else c.aside_seqs end
       where c.lane_id = p_lane and c.hi = given.hi;
       if rest = '{}' then
         delete from line_messages m where m.lane_id = p_lane and m.seq > claim.lo and m.seq <= given.hi;
       end if;
       return query
       select u.seq, u.token, claim.expires_at <= carillon_now()
       from unnest(given.seqs, given.tokens) as u (seq, token)
       where (u.token is null or u.token = claim.token) and u.seq = any(good);
     end loop;
   end $$`,

  // Moves messages that are open in a claim to where messages are kept one by one, with the lease that they have, and
  // returns how many it moved. From there they can be given back, extended and buried singly.
  `create function carillon_line_set_aside(
     p_project uuid, p_queue_id uuid, p_lane bigint, p_retention_days int, p_seqs bigint[]
   ) returns int language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     moved int;
   begin
     with given as materialized (
       select u.seq, (
         select c.hi from line_claims c where c.lane_id = p_lane and c.hi >= u.seq order by c.hi limit 1) as hi
       from (select distinct unnest(p_seqs) as seq) u
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
     perform carillon_line_settle(p_lane, p_seqs, null, true);
     return moved;
   end $$`,

  // Moves up to p_limit messages off the front of a line to where messages are kept one by one, free for hand-out, and
  // returns how many: what a queue does that was plain and is so no more. Needs the claimers' lock.
  `create function carillon_line_drain(p_project uuid, p_queue_id uuid, p_lane bigint, p_retention_days int, p_limit int)
   returns int language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     lo bigint := carillon_line_cursor(p_lane);
     hi bigint;
   begin
     select max(o.seq) into hi from (
       select m.seq from line_messages m where m.lane_id = p_lane and m.seq > lo order by m.seq limit p_limit) o;
     if hi is null then return 0; end if;
     insert into line_claims (lane_id, hi, lo, open_seqs, aside_seqs, settled, token, first_published_at, claimed_at, expires_at)
     values (p_lane, hi, lo, '{}', array(select generate_series(lo + 1, hi)), true, 0, carillon_now(), carillon_now(),
             carillon_now());
     with gone as (
       delete from line_messages m where m.lane_id = p_lane and m.seq > lo and m.seq <= hi returning m.*
     ),
     bodies as (
       insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
       select p_project, p_queue_id, carillon_pair(g.lane_id, g.seq), g.payload,
              coalesce(g.content_type, 'application/json'), coalesce(g.headers, '{}') from gone g
     )
     insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, published_at, expires_at)
     select p_project, p_queue_id, carillon_pair(g.lane_id, g.seq), g.seq, g.group_id, g.published_at, g.priority,
            g.published_at, g.published_at, g.published_at + make_interval(days => p_retention_days)
     from gone g;
     return hi - lo;
   end $$`,
];
