import { type Kysely, sql } from "kysely";

/** Publishing outside the line, and deduplication. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // What a queue has that nobody described.
  `alter table queues
     alter column type set default 'standard',
     alter column max_retries set default 5,
     alter column message_retention_days set default 14,
     alter column visibility_timeout_seconds set default 30,
     alter column enable_priority set default false,
     add column content_deduplication boolean not null default false,
     add column deduplication_window_seconds int not null default 600,
     add column require_receipt boolean not null default false`,
  // All that keeps the messages of a queue out of a line: each has a turn, a limit or a key of its own.
  `create or replace function carillon_uses_line(q queues) returns boolean language sql immutable as $$
     select q.type = 'standard' and not q.enable_priority and not q.grouped and not q.metered
        and not q.content_deduplication
   $$`,
  // Hand-outs that a message came back from without a failure.
  `alter table messages add column return_count int not null default 0`,

  // What was published with a key, or with equal content, for as long as the window says: it outlives the message.
  `create table deduplication_keys (
     project_id uuid not null,
     queue_id uuid not null,
     key bytea not null,
     message_id uuid not null,
     expires_at timestamptz not null,
     primary key (project_id, queue_id, key)
   )`,
  `create index deduplication_keys_expiry_idx on deduplication_keys (expires_at)`,

  // What a key, or a message without one in a queue that compares content, is remembered by. Lengths keep the parts apart.
  `create function carillon_deduplication_key(p_key text, p_group_id text, p_content_type text, p_payload bytea)
   returns bytea language sql immutable parallel safe as $$
     select sha256(case when p_key <> '' then '\\x00'::bytea || convert_to(p_key, 'UTF8')
       else '\\x01'::bytea || int4send(octet_length(p_group_id)) || convert_to(p_group_id, 'UTF8')
            || int4send(octet_length(p_content_type)) || convert_to(p_content_type, 'UTF8') || p_payload end)
   $$`,

  // Stores messages outside the line, in the order given, and returns an id for each: its own or, where an earlier
  // message with the same deduplication key is remembered, that one's; nothing is stored for it then. Whoever publishes
  // the same key at the same time waits for this transaction to end. Keys are taken in their order, so that two
  // publishers cannot wait for each other in a circle. In a FIFO queue publishers take turns until they commit.
  `create function carillon_put_messages(
     p_project uuid, p_queue_id uuid, p_fifo boolean, p_minutes_per_priority int, p_retention_days int,
     p_content_deduplication boolean, p_window_seconds int, p_group_ids text[], p_priorities int[], p_delays int[],
     p_ttls int[], p_keys text[], p_payloads bytea[], p_content_types text[], p_headers text[]
   ) returns table (message_id uuid, deduplicated boolean) language plpgsql as $$
   #variable_conflict use_column
   declare
     turn bigint := 0;
     ids uuid[];
     keys bytea[];
     originals uuid[];
   begin
     if p_fifo then
       perform pg_advisory_xact_lock(hashtextextended(p_project || '/' || p_queue_id, 0));
       turn := nextval('lane_turns') * 100000;
     end if;
     select array_agg(carillon_id() order by n) into ids from generate_series(1, cardinality(p_payloads)) n;
     originals := ids;
     if p_content_deduplication or exists (select from unnest(p_keys) as k (key) where k.key <> '') then
       select array_agg(
         case when p_content_deduplication or p_keys[n] <> ''
           then carillon_deduplication_key(p_keys[n], p_group_ids[n], p_content_types[n], p_payloads[n]) end order by n)
       into keys from generate_series(1, cardinality(ids)) n;
       insert into deduplication_keys as d (project_id, queue_id, key, message_id, expires_at)
       select p_project, p_queue_id, k.key, k.id, carillon_now() + make_interval(secs => p_window_seconds)
       from (select distinct on (u.key) u.key, u.id from unnest(keys, ids) with ordinality as u (key, id, ord)
             where u.key is not null order by u.key, u.ord) k
       order by k.key
       on conflict (project_id, queue_id, key) do update set message_id = excluded.message_id, expires_at = excluded.expires_at
       where d.expires_at <= carillon_now();
       select array_agg(coalesce(d.message_id, u.id) order by u.ord) into originals
       from unnest(keys, ids) with ordinality as u (key, id, ord)
       left join deduplication_keys d on d.project_id = p_project and d.queue_id = p_queue_id and d.key = u.key;
     end if;
     with input as materialized (
       select ids[given.ord] as message_id, carillon_now() + make_interval(secs => given.delay) as visible_at, given.*
       from unnest(p_group_ids, p_priorities, p_delays, p_ttls, p_payloads, p_content_types, p_headers)
         with ordinality as given (group_id, priority, delay, ttl, payload, content_type, headers, ord)
       where originals[given.ord] = ids[given.ord]
     ),
     stored as (
       insert into messages (project_id, queue_id, message_id, seq, group_id, priority, visible_at, rank, published_at, expires_at)
       select p_project, p_queue_id, i.message_id, turn + i.ord, i.group_id, i.priority, i.visible_at,
              i.visible_at - make_interval(mins => i.priority * p_minutes_per_priority), carillon_now(),
              i.visible_at + least(make_interval(days => p_retention_days), make_interval(secs => i.ttl))
       from input i
     )
     insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
     select p_project, p_queue_id, i.message_id, i.payload, i.content_type, i.headers::jsonb from input i;
     return query select o.original, o.original <> o.id
                  from unnest(originals, ids) with ordinality as o (original, id, ord) order by o.ord;
   end $$`,
];
