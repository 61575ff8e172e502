import { type Kysely, sql } from "kysely";

/**
 * Rows of groups that are never updated: each change of a group is a new row, and the newest counts. With marks of how
 * far each queue's hand-outs have come, nobody looks at what is over, so that a hand-out costs the same however old the
 * oldest open transaction is, which keeps the remains of old rows from being removed.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/** The groups of queue `old`, counted anew from its messages. */
const COUNTED = `
  insert into message_groups (project_id, queue_id, group_id, version, depth, in_flight, level, ready, ready_at, turn,
                              from_seq, from_rank)
  select old.project_id, old.queue_id, g.group_id, g.version, g.depth, g.in_flight,
         case when old.type = 'fifo' then 0 else g.in_flight end, false, carillon_now(), g.version, 0, '-infinity'
  from (select m.group_id, count(*) as depth, count(m.lease_expires_at) as in_flight, nextval('group_turns') * 100000 as version
        from messages m where m.project_id = old.project_id and m.queue_id = old.queue_id
        group by m.group_id order by min(m.rank), min(m.seq)) g`;

const STATEMENTS = [
  "drop table message_groups",
  "drop table group_change_floors",
  "delete from group_changes",

  // The newest version of a group is its row; whoever writes one deletes the one before. It is looked up by the highest
  // version, which the index comes to first.
  //   depth counts all messages of the group, in_flight those under a lease. level is in_flight, and 0 in a FIFO queue.
  //   ready: a message can be handed out. ready_at: when to look again where none can; null where only a change can
  //   make it so. turn: grows whenever the group becomes ready or comes to another level.
  //   from_seq: no message of the group stands before. from_rank: none that is not leased does.
  //   emptied_at: since when the group has no messages; the row stays for a while, so that it is found if there are new ones.
  `create table message_groups (
     project_id uuid not null,
     queue_id uuid not null,
     group_id text not null,
     version bigint not null,
     depth int not null,
     in_flight int not null,
     level int not null,
     ready boolean not null,
     ready_at timestamptz,
     turn bigint not null,
     from_seq bigint not null,
     from_rank timestamptz not null,
     emptied_at timestamptz,
     primary key (project_id, queue_id, group_id, version)
   ) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,
  `create index message_groups_ready_idx on message_groups (project_id, queue_id, level, turn) where ready`,
  `create index message_groups_waiting_idx on message_groups (project_id, queue_id, ready_at) where not ready and ready_at is not null`,
  `create index message_groups_blocked_idx on message_groups (project_id, queue_id, group_id) where not ready and depth > 0`,
  `create index message_groups_emptied_idx on message_groups (emptied_at) where emptied_at is not null`,

  // How far the hand-outs of a queue have come, so that nobody walks over the remains of what is over. The newest row counts.
  //   floor: no change up to it is or will be there. next_floor becomes the floor when every transaction before next_xid
  //   has ended and nothing of theirs is left below it.
  //   due_after: what was to be looked at until then has been.
  //   turns: of each level, beginning with 0, the highest turn up to which no group is ready.
  `create table group_marks (
     project_id uuid not null,
     queue_id uuid not null,
     mark_id bigint generated always as identity,
     floor bigint not null,
     next_floor bigint not null,
     next_xid xid8 not null,
     due_after timestamptz not null,
     turns bigint[] not null,
     primary key (project_id, queue_id, mark_id)
   ) with (autovacuum_vacuum_scale_factor = 0.02)`,

  // The lowest seq and rank that a change brought into the group, or back into it; null for none.
  `alter table group_changes add column from_seq bigint, add column from_rank timestamptz`,

  `create or replace function carillon_note_group_changes() returns trigger language plpgsql as $$
   declare
     lane record;
     is_grouped boolean;
     sign int := case tg_op when 'DELETE' then -1 else 1 end;
   begin
     if current_setting('carillon.handing_out', true) = 'on' then return null; end if;
     for lane in select distinct c.project_id, c.queue_id from changed_rows c order by 1, 2 loop
       perform pg_advisory_xact_lock_shared(carillon_shape_lock(lane.queue_id));
       select q.grouped into is_grouped from queues q
       where q.project_id = lane.project_id and q.queue_id = lane.queue_id;
       if is_grouped is not true then continue; end if;
       if tg_op = 'UPDATE' then
         insert into group_changes (project_id, queue_id, group_id, depth, in_flight, from_seq, from_rank)
         select lane.project_id, lane.queue_id, c.group_id, 0, count(c.lease_expires_at) - count(o.lease_expires_at),
                min(c.seq) filter (where c.expires_at > o.expires_at), min(c.rank) filter (where c.lease_expires_at is null)
         from changed_rows c join old_rows o using (project_id, queue_id, message_id)
         where c.project_id = lane.project_id and c.queue_id = lane.queue_id
           and ((c.lease_expires_at is null) <> (o.lease_expires_at is null) or c.visible_at <> o.visible_at
                or c.expires_at <> o.expires_at or c.rank <> o.rank)
         group by c.group_id order by min(c.seq);
       else
         insert into group_changes (project_id, queue_id, group_id, depth, in_flight, from_seq, from_rank)
         select lane.project_id, lane.queue_id, c.group_id, sign * count(*), sign * count(c.lease_expires_at),
                case when sign > 0 then min(c.seq) end, case when sign > 0 then min(c.rank) end
         from changed_rows c where c.project_id = lane.project_id and c.queue_id = lane.queue_id
         group by c.group_id order by min(c.seq);
       end if;
     end loop;
     return null;
   end $$`,

  // As before: every group is to be looked at again; where the queue was not grouped, its messages are counted.
  `create or replace function carillon_regroup() returns trigger language plpgsql set lock_timeout = '3s' as $$
   begin
     perform pg_advisory_xact_lock(carillon_shape_lock(old.queue_id));
     perform pg_advisory_xact_lock(carillon_turn_lock(old.queue_id));
     delete from group_marks where project_id = old.project_id and queue_id = old.queue_id;
     if old.grouped and new.grouped then
       update message_groups set ready = false, ready_at = carillon_now()
       where project_id = old.project_id and queue_id = old.queue_id and depth > 0;
       return null;
     end if;
     delete from group_changes where project_id = old.project_id and queue_id = old.queue_id;
     delete from message_groups where project_id = old.project_id and queue_id = old.queue_id;
     if new.grouped then ${COUNTED}; end if;
     return null;
   end $$`,

  `do $$
   declare
     old queues%rowtype;
   begin
     for old in select * from queues where grouped loop ${COUNTED}; end loop;
   end $$`,
];
