import { type Kysely, sql } from "kysely";

/** SQL functions by which a program publishes in its own transaction. They check what the API checks. */
export async function up(db: Kysely<unknown>): Promise<void> {
  const { rows } = await sql<{ schema: string }>`select quote_ident(current_schema()) as schema`.execute(db);
  const schema = rows[0]?.schema ?? "public";
  for (const statement of [...CHECKS, ...published(schema)]) await sql.raw(statement).execute(db);
}

const CHECKS = [
  // The limits of the API, as the node that started last has them.
  `create table publish_limits (
     only_row boolean primary key default true check (only_row),
     max_payload_bytes int not null default 1048576,
     auto_create_queues boolean not null default true
   )`,
  `insert into publish_limits default values`,

  `create function carillon_refuse(p_reason text, p_field text, p_rule text) returns void language plpgsql as $$
   begin
     raise exception using message = p_field || ': ' || p_rule, constraint = p_reason, column = p_field,
       errcode = case p_reason when 'FIELD_INVALID' then 'QC001' when 'PAYLOAD_TOO_LARGE' then 'QC002'
                               when 'QUEUE_NOT_FOUND' then 'QC003' when 'PROJECT_NOT_FOUND' then 'QC004' end;
   end $$`,

  `create function carillon_check_range(p_field text, p_value int, p_least int, p_most int) returns void
   language plpgsql immutable as $$
   begin
     if p_value not between p_least and p_most then
       perform carillon_refuse('FIELD_INVALID', p_field, format('must be %s to %s', p_least, p_most));
     end if;
   end $$`,

  `create function carillon_check_text(p_field text, p_value text) returns void language plpgsql immutable as $$
   begin
     if char_length(p_value) > 128 then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must be at most 128 characters');
     elsif p_value ~ '[\\u0001-\\u001f\\u007f-\\u009f]' then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must not have control characters');
     end if;
   end $$`,

  // Nesting is measured without recursion: what is left of the text are its brackets, and each pass takes the innermost.
  `create function carillon_check_payload(p_field text, p_payload bytea, p_content_type text, p_most_bytes int) returns void
   language plpgsql immutable as $$
   declare
     media_type text := lower(btrim(split_part(p_content_type, ';', 1)));
     brackets text;
   begin
     if p_payload is null then perform carillon_refuse('FIELD_INVALID', p_field, 'is required'); end if;
     if octet_length(p_payload) > p_most_bytes then
       perform carillon_refuse('PAYLOAD_TOO_LARGE', p_field,
         format('is %s bytes; the limit is %s', octet_length(p_payload), p_most_bytes));
     end if;
     if media_type not in ('', 'application/json') and media_type not like '%+json' then return; end if;
     begin
       perform convert_from(p_payload, 'UTF8')::json;
     exception
       when statement_too_complex then
         perform carillon_refuse('FIELD_INVALID', p_field, 'must not nest deeper than 64 levels');
       when data_exception then
         perform carillon_refuse('FIELD_INVALID', p_field, 'must be JSON in UTF-8, or content_type must say what else it is');
     end;
     brackets := translate(regexp_replace(
       regexp_replace(convert_from(p_payload, 'UTF8'), '"(?:[^"\\\\]|\\\\.)*"', '', 'g'), '[^][{}]', '', 'g'), '{}', '[]');
     for level in 1 .. 64 loop
       exit when brackets = '';
       brackets := replace(brackets, '[]', '');
     end loop;
     if brackets <> '' then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must not nest deeper than 64 levels');
     end if;
   end $$`,

  // The headers with names in lower case and trimmed values.
  `create function carillon_checked_headers(p_field text, p_headers jsonb) returns text language plpgsql immutable as $$
   declare
     header record;
     name text;
     field text;
     checked jsonb := '{}';
     bytes int := 0;
   begin
     if jsonb_typeof(p_headers) <> 'object' then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must be an object of strings');
     end if;
     if (select count(*) from jsonb_object_keys(p_headers)) > 32 then
       perform carillon_refuse('FIELD_INVALID', p_field, 'at most 32 headers');
     end if;
     for header in select key, value #>> '{}' as value, jsonb_typeof(value) as type from jsonb_each(p_headers) loop
       name := lower(header.key collate "C");
       field := format('%s[%s]', p_field, to_jsonb(left(header.key, 64)));
       if header.key !~ '^[!#$%&''*+.^_\`|~0-9A-Za-z-]+$' then
         perform carillon_refuse('FIELD_INVALID', field, 'the name is not a header name');
       elsif name in ('accept-encoding', 'connection', 'content-length', 'cookie2', 'expect', 'forwarded', 'host',
                      'http2-settings', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'via', 'x-real-ip')
             or name ~ '^(carillon|proxy|webhook|x-carillon|x-forwarded)-' then
         perform carillon_refuse('FIELD_INVALID', field, 'the header is reserved');
       elsif checked ? name then
         perform carillon_refuse('FIELD_INVALID', field, 'the header is given twice, in different case');
       elsif header.type <> 'string' then
         perform carillon_refuse('FIELD_INVALID', field, 'must be a string');
       elsif header.value !~ '^[\\u0009\\u0020-\\u007e\\u0080-\\u00ff]*$' then
         perform carillon_refuse('FIELD_INVALID', field, 'the value has characters that a header cannot carry');
       end if;
       checked := checked || jsonb_build_object(name, btrim(header.value, E' \\t\\u00a0'));
       bytes := bytes + char_length(name) + char_length(header.value);
     end loop;
     if bytes > 8192 then perform carillon_refuse('FIELD_INVALID', p_field, 'at most 8192 bytes of names and values'); end if;
     return checked::text;
   end $$`,

  // The public form of a stored id: 26 digits of Crockford's base 32.
  `create function carillon_format_id(p_prefix text, p_id uuid) returns text language sql immutable parallel safe as $$
     select p_prefix || '_' || string_agg(
       substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', substring(bits from 1 + 5 * n for 5)::int + 1, 1), '' order by n)
     from (select B'00' || ('x' || replace(p_id::text, '-', ''))::bit(128) as bits) id, generate_series(0, 25) n
   $$`,

  // Checks messages and stores them; the queue is made where there is none and the operator allows it. Returns the ids.
  `create function carillon_publish_checked(
     p_project text, p_queue text, p_prefixes text[], p_payloads bytea[], p_content_types text[], p_group_ids text[],
     p_priorities int[], p_delays int[], p_headers jsonb[], p_keys text[], p_ttls int[]
   ) returns text[] language plpgsql as $$
   declare
     limits publish_limits%rowtype;
     q queues%rowtype;
     project uuid;
     headers text[] := '{}';
     ids text[];
   begin
     select * into limits from publish_limits;
     select p.project_id into project from projects p where p.name = p_project;
     if not found then
       perform carillon_refuse('PROJECT_NOT_FOUND', 'project', format('there is no project %s', left(p_project, 128)));
     end if;
     if p_queue is null or p_queue !~ '^[A-Za-z0-9._-]{1,128}$' or p_queue in ('.', '..') then
       perform carillon_refuse('FIELD_INVALID', 'queue', 'must be 1 to 128 of A-Z a-z 0-9 . _ - and neither . nor ..');
     end if;
     for i in 1 .. cardinality(p_payloads) loop
       p_content_types[i] := coalesce(nullif(p_content_types[i], ''), 'application/json');
       if char_length(p_content_types[i]) > 128
          or p_content_types[i] !~ '^[A-Za-z0-9_.+-]+/[A-Za-z0-9_.+-]+(; ?[A-Za-z0-9_.+-]+=[A-Za-z0-9_.+-]+)*$' then
         perform carillon_refuse('FIELD_INVALID', p_prefixes[i] || 'content_type', 'must be a content type');
       end if;
       perform carillon_check_text(p_prefixes[i] || 'group_id', p_group_ids[i]);
       perform carillon_check_text(p_prefixes[i] || 'deduplication_key', p_keys[i]);
       perform carillon_check_range(p_prefixes[i] || 'priority', p_priorities[i], 0, 9);
       perform carillon_check_range(p_prefixes[i] || 'delay_seconds', p_delays[i], 0, 315360000);
       perform carillon_check_range(p_prefixes[i] || 'ttl_seconds', p_ttls[i], 1, 31536000);
       perform carillon_check_payload(p_prefixes[i] || 'payload', p_payloads[i], p_content_types[i], limits.max_payload_bytes);
       headers[i] := carillon_checked_headers(p_prefixes[i] || 'headers', coalesce(p_headers[i], '{}'));
       p_group_ids[i] := coalesce(p_group_ids[i], '');
       p_keys[i] := coalesce(p_keys[i], '');
       p_priorities[i] := coalesce(p_priorities[i], 0);
       p_delays[i] := coalesce(p_delays[i], 0);
     end loop;
     loop
       select * into q from queues where queues.project_id = project and queues.name = p_queue;
       exit when found;
       if not limits.auto_create_queues then
         perform carillon_refuse('QUEUE_NOT_FOUND', 'queue', format('there is no queue %s', p_queue));
       end if;
       insert into queues (project_id, name) values (project, p_queue) on conflict (project_id, name) do nothing;
     end loop;
     with published as materialized (
       select put.* from carillon_put_messages(
         q.project_id, q.queue_id, q.type = 'fifo', case when q.enable_priority then 1 else 0 end,
         q.message_retention_days, q.content_deduplication, q.deduplication_window_seconds,
         p_group_ids, p_priorities, p_delays, p_ttls, p_keys, p_payloads, p_content_types, headers) put
     ),
     counted as (
       insert into queue_history (project_id, queue_id, published)
       select q.project_id, q.queue_id, count(*) from published where not deduplicated having count(*) > 0
     )
     select array_agg(carillon_format_id('msg', message_id)) into ids from published;
     return ids;
   end $$`,

  // A whole number of a message in a batch; null where it is not given.
  `create function carillon_json_int(p_field text, p_value jsonb) returns int language plpgsql immutable as $$
   begin
     if p_value is null or p_value = 'null' then return null; end if;
     if jsonb_typeof(p_value) <> 'number' or p_value::numeric not between -2147483648 and 2147483647
        or p_value::numeric <> trunc(p_value::numeric) then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must be a whole number');
     end if;
     return p_value::numeric::int;
   end $$`,

  `create function carillon_json_text(p_field text, p_value jsonb) returns text language plpgsql immutable as $$
   begin
     if jsonb_typeof(p_value) not in ('string', 'null') then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must be a string');
     end if;
     return p_value #>> '{}';
   end $$`,

  // The payload of a message in a batch, as in REST: JSON as it is, anything else as base64.
  `create function carillon_json_payload(p_field text, p_value jsonb, p_content_type text) returns bytea
   language plpgsql immutable as $$
   declare
     media_type text := lower(btrim(split_part(coalesce(p_content_type, ''), ';', 1)));
   begin
     if p_value is null or media_type in ('', 'application/json') or media_type like '%+json' then
       return convert_to(p_value::text, 'UTF8');
     end if;
     if jsonb_typeof(p_value) <> 'string' then
       perform carillon_refuse('FIELD_INVALID', p_field, 'must be a base64 string');
     end if;
     return decode(p_value #>> '{}', 'base64');
   exception when invalid_parameter_value then
     perform carillon_refuse('FIELD_INVALID', p_field, 'must be a base64 string');
   end $$`,
];

/** The arguments after the payload, and how they are passed on. */
const OPTIONS = `content_type text default 'application/json', group_id text default '', priority int default 0,
  delay_seconds int default 0, headers jsonb default '{}', deduplication_key text default '', ttl_seconds int default null`;
const PAYLOADS = {
  jsonb: "convert_to(payload::text, 'UTF8')",
  text: "convert_to(payload, 'UTF8')",
  bytea: "payload",
} as const;

/**
 * What programs call. Their names and arguments are part of the API: docs/transactional-enqueue.md.
 *
 * They run with the rights of the owner of the tables, and everything in them is looked up in Carillon's schema and
 * nowhere else. Nobody else may call them until the owner says so by carillon_grant_publish.
 */
function published(schema: string): string[] {
  const asOwner = `language plpgsql security definer set search_path = ${schema}, pg_temp`;
  const signatures = [
    ...Object.keys(PAYLOADS).map(
      (type) => `carillon_publish(text, text, ${type}, text, text, int, int, jsonb, text, int)`,
    ),
    "carillon_publish_batch(text, text, jsonb)",
    "carillon_wake(text, text)",
  ].map((signature) => `${schema}.${signature}`);
  return [
    ...Object.entries(PAYLOADS).map(
      ([type, bytes]) => `
      create function carillon_publish(project text, queue text, payload ${type}, ${OPTIONS}) returns text ${asOwner} as $$
      begin
        return (carillon_publish_checked(
          project, queue, array[''], array[${bytes}], array[content_type], array[group_id], array[priority],
          array[delay_seconds], array[headers], array[deduplication_key], array[ttl_seconds]))[1];
      end $$`,
    ),

    `create function carillon_publish_batch(project text, queue text, messages jsonb) returns text[] ${asOwner} as $$
     declare
       unknown text;
     begin
       if jsonb_typeof(messages) is distinct from 'array' then
         perform carillon_refuse('FIELD_INVALID', 'messages', 'must be an array');
       elsif jsonb_array_length(messages) > 1000 then
         perform carillon_refuse('FIELD_INVALID', 'messages', 'must be at most 1000 messages');
       elsif jsonb_array_length(messages) = 0 then
         return '{}';
       end if;
       select format('messages[%s]', ord - 1) into unknown
       from jsonb_array_elements(messages) with ordinality as m (message, ord)
       where jsonb_typeof(m.message) <> 'object' limit 1;
       if found then perform carillon_refuse('FIELD_INVALID', unknown, 'must be an object'); end if;
       select format('messages[%s].%s', ord - 1, left(key, 64)) into unknown
       from jsonb_array_elements(messages) with ordinality as m (message, ord), jsonb_object_keys(m.message) as k (key)
       where k.key not in ('payload', 'content_type', 'group_id', 'priority', 'delay_seconds', 'headers', 'deduplication_key',
                           'ttl_seconds') limit 1;
       if found then perform carillon_refuse('FIELD_INVALID', unknown, 'is not a field of a message'); end if;
       return (
         select carillon_publish_checked(
           project, queue, array_agg(at order by ord),
           array_agg(carillon_json_payload(at || 'payload', m -> 'payload', type) order by ord),
           array_agg(type order by ord),
           array_agg(carillon_json_text(at || 'group_id', m -> 'group_id') order by ord),
           array_agg(carillon_json_int(at || 'priority', m -> 'priority') order by ord),
           array_agg(carillon_json_int(at || 'delay_seconds', m -> 'delay_seconds') order by ord),
           array_agg(nullif(m -> 'headers', 'null') order by ord),
           array_agg(carillon_json_text(at || 'deduplication_key', m -> 'deduplication_key') order by ord),
           array_agg(carillon_json_int(at || 'ttl_seconds', m -> 'ttl_seconds') order by ord))
         from (
           select given.m, given.ord, format('messages[%s].', given.ord - 1) as at,
                  carillon_json_text(format('messages[%s].content_type', given.ord - 1), given.m -> 'content_type') as type
           from jsonb_array_elements(messages) with ordinality as given (m, ord)
         ) read
       );
     end $$`,

    // Wakes the waiting consumers of a queue when the transaction commits.
    `create function carillon_wake(project text, queue text) returns void ${asOwner} as $$
     begin
       perform pg_notify('carillon_wakeups', format('queue:%s/%s pushes', p.project_id, q.name))
       from projects p join queues q on q.project_id = p.project_id
       where p.name = carillon_wake.project and q.name = carillon_wake.queue;
     end $$`,

    `revoke execute on function ${signatures.join(", ")} from public`,

    `create function carillon_grant_publish(role_name text) returns void language plpgsql as $$
     begin
       execute format('grant usage on schema ${schema} to %I', role_name);
       execute format('grant execute on function ${signatures.join(", ")} to %I', role_name);
     end $$`,
  ];
}
