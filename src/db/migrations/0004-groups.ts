import { type Kysely, sql } from "kysely";

/**
 * Groups: a row for each group of messages that is handed out in its own turn, so that the next group is found by index
 * however many there are. And what a queue's limits are, and what was handed out under them.
 *
 * Whoever changes messages does not touch the row of the group: triggers only append what changed, so that no call waits
 * for another on a group. The next hand-out, which has the queue to itself, brings the rows up to date. A row may thus be
 * behind, but only the safe way: a message that was settled meanwhile still counts as in flight. What a row says is a
 * hint where to look; a message is leased by what its own row says.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // grouped: handed out group by group. metered: limits of the queue as a whole count. A limit of 0 is none.
  `alter table queues
     add column fair boolean not null default false,
     add column max_in_flight int not null default 0,
     add column rate_limit int not null default 0,
     add column rate_period_seconds int not null default 1,
     add column group_max_in_flight int not null default 0,
     add column group_rate_limit int not null default 0,
     add column group_rate_period_seconds int not null default 1`,
  `alter table queues
     add column grouped boolean not null
       generated always as (type = 'fifo' or fair or group_max_in_flight > 0 or group_rate_limit > 0) stored,
     add column metered boolean not null generated always as (max_in_flight > 0 or rate_limit > 0) stored`,

  // depth counts all messages of the group, in_flight those under a lease. ready: a message can be handed out. ready_at:
  // when to look again where none can; null where only a change can make it so. turn: when it was last served, or came.
  `create table message_groups (
     project_id uuid not null,
     queue_id uuid not null,
     group_id text not null,
     depth int not null,
     in_flight int not null,
     ready boolean not null,
     ready_at timestamptz,
     turn bigint not null,
     primary key (project_id, queue_id, group_id)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,
  `create index message_groups_ready_idx on message_groups (project_id, queue_id, in_flight, turn) where ready`,
  `create index message_groups_waiting_idx on message_groups (project_id, queue_id, ready_at) where not ready and ready_at is not null`,
  `create index message_groups_blocked_idx on message_groups (project_id, queue_id, group_id) where not ready`,
  `create sequence group_turns`,

  `create table group_changes (
     project_id uuid not null,
     queue_id uuid not null,
     change_id bigint generated always as identity,
     group_id text not null,
     depth int not null,
     in_flight int not null,
     primary key (project_id, queue_id, change_id)
   ) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,

  // How far changes have been taken in, so that nobody walks over the remains of old ones. floor: no change up to it is
  // or will be there. next_floor becomes the floor when every transaction before next_xid has ended and nothing of
  // theirs is left below it. The newest row counts; rows are added rather than updated, so that it is the first in its index.
  `create table group_change_floors (
     project_id uuid not null,
     queue_id uuid not null,
     floor_id bigint generated always as identity,
     floor bigint not null,
     next_floor bigint not null,
     next_xid xid8 not null,
     primary key (project_id, queue_id, floor_id)
   ) with (autovacuum_vacuum_scale_factor = 0.02)`,

  // Hand-outs that count against a rate, by the slice of time in which they fell: those of one group, or with of_queue
  // those of the whole queue.
  `create table rate_slices (
     project_id uuid not null,
     queue_id uuid not null,
     of_queue boolean not null,
     group_id text not null,
     begins_at timestamptz not null,
     last_at timestamptz not null,
     handed_out int not null,
     expires_at timestamptz not null,
     primary key (project_id, queue_id, of_queue, group_id, begins_at)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)`,
  `create index rate_slices_expiry_idx on rate_slices (expires_at)`,

  // Without the project, which the queue implies: while the planner knows nothing of the table, an index that begins as
  // the primary key does looks as good to it for finding one message, and is a walk over the whole queue.
  `drop index messages_group_idx`,
  `create index messages_group_idx on messages (queue_id, group_id, seq)`,
  `create index messages_group_ready_idx on messages (queue_id, group_id, rank, seq) where lease_expires_at is null`,

  // The two locks of a queue that is handed out by group or under limits, both until the end of the transaction, and in
  // this order. Shape: whoever changes messages shares it, whoever changes whether the queue is grouped has it alone.
  // Turn: hand-outs take turns.
  `create function carillon_shape_lock(p_queue_id uuid) returns bigint language sql immutable parallel safe as $$
     select hashtextextended(p_queue_id::text, 2)
   $$`,
  `create function carillon_turn_lock(p_queue_id uuid) returns bigint language sql immutable parallel safe as $$
     select hashtextextended(p_queue_id::text, 3)
   $$`,

  // Appends what a statement changed in groups. A hand-out writes its own changes to the groups' rows, so it is left out.
  `create function carillon_note_group_changes() returns trigger language plpgsql as $$
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
         insert into group_changes (project_id, queue_id, group_id, depth, in_flight)
         select lane.project_id, lane.queue_id, c.group_id, 0, count(c.lease_expires_at) - count(o.lease_expires_at)
         from changed_rows c join old_rows o using (project_id, queue_id, message_id)
         where c.project_id = lane.project_id and c.queue_id = lane.queue_id
           and ((c.lease_expires_at is null) <> (o.lease_expires_at is null) or c.visible_at <> o.visible_at
                or c.expires_at <> o.expires_at)
         group by c.group_id order by min(c.seq);
       else
         insert into group_changes (project_id, queue_id, group_id, depth, in_flight)
         select lane.project_id, lane.queue_id, c.group_id, sign * count(*), sign * count(c.lease_expires_at)
         from changed_rows c where c.project_id = lane.project_id and c.queue_id = lane.queue_id
         group by c.group_id order by min(c.seq);
       end if;
     end loop;
     return null;
   end $$`,
  `create trigger messages_note_insert after insert on messages referencing new table as changed_rows
     for each statement execute function carillon_note_group_changes()`,
  `create trigger messages_note_update after update on messages referencing old table as old_rows new table as changed_rows
     for each statement execute function carillon_note_group_changes()`,
  `create trigger messages_note_delete after delete on messages referencing old table as changed_rows
     for each statement execute function carillon_note_group_changes()`,

  // Moves what is out of a line to where it is counted, when its queue comes to be grouped or metered. Claims are locked
  // before the queue's shape, as by all who set messages aside.
  `create function carillon_leave_line() returns trigger language plpgsql as $$
   begin
     perform pg_advisory_xact_lock(old.lane_id * 2 + 1);
     perform carillon_line_set_aside(old.project_id, old.queue_id, old.lane_id, old.message_retention_days, array(
       select unnest(c.open_seqs) from line_claims c where c.lane_id = old.lane_id and not c.settled));
     return null;
   end $$`,
  `create trigger queues_leave_line after update on queues for each row
     when ((new.grouped or new.metered) and not (old.grouped or old.metered))
     execute function carillon_leave_line()`,

  // Makes the groups' rows fit a queue whose grouping or limits have changed. Every group is to be looked at again; where
  // the queue was not grouped before, its messages are counted. Nobody can change messages of the queue while this waits
  // for those who do, so it gives up after a while: a transaction of an application may be open for long.
  `create function carillon_regroup() returns trigger language plpgsql set lock_timeout = '3s' as $$
   begin
     perform pg_advisory_xact_lock(carillon_shape_lock(old.queue_id));
     perform pg_advisory_xact_lock(carillon_turn_lock(old.queue_id));
     if old.grouped and new.grouped then
       update message_groups set ready = false, ready_at = carillon_now()
       where project_id = old.project_id and queue_id = old.queue_id;
       return null;
     end if;
     delete from group_changes where project_id = old.project_id and queue_id = old.queue_id;
     delete from message_groups where project_id = old.project_id and queue_id = old.queue_id;
     delete from group_change_floors where project_id = old.project_id and queue_id = old.queue_id;
     if new.grouped then
       insert into message_groups (project_id, queue_id, group_id, depth, in_flight, ready, ready_at, turn)
       select old.project_id, old.queue_id, g.group_id, g.depth, g.in_flight, false, carillon_now(),
              nextval('group_turns') * 100000
       from (select m.group_id, count(*) as depth, count(m.lease_expires_at) as in_flight from messages m
             where m.project_id = old.project_id and m.queue_id = old.queue_id
             group by m.group_id order by min(m.rank), min(m.seq)) g;
     end if;
     return null;
   end $$`,
  `create trigger queues_regroup after update on queues for each row
     when (old.grouped <> new.grouped
           or old.group_max_in_flight <> new.group_max_in_flight or old.group_rate_limit <> new.group_rate_limit
           or old.group_rate_period_seconds <> new.group_rate_period_seconds)
     execute function carillon_regroup()`,
];
