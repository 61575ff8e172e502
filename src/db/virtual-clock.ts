import { sql } from "kysely";
import type { Db } from "./schema.ts";

/** The name that a serving Carillon has in the database as long as it lives: that of the connection for its wake-ups. */
const SERVING = "carillon wake-ups";

/** A clock cannot be made virtual, or real again. The message is for the operator. */
class ClockError extends Error {
  override readonly name = "ClockError";
}

/**
 * Has the database's clock stand still, where it stood when it was virtual before. Returns the instant. For a process that
 * is about to serve, alone, a database that is new or has a virtual clock already: what was stored in real time would all
 * be due, or over, when the clock is moved by a year.
 *
 * @throws Error in one line when the database is not such a one.
 */
export async function makeClockVirtual(db: Db): Promise<Date> {
  if (!(await isClockVirtual(db))) {
    const { rows } = await sql`select from projects limit 1`.execute(db);
    if (rows.length > 0) {
      throw new ClockError(
        "a virtual clock needs a database of its own, and this one has been used in real time: name a new data directory " +
          "with CARILLON_DATA_DIR, or an empty database",
      );
    }
  }
  await refuseOthers(db);
  await sql`create table if not exists virtual_clock (at timestamptz not null)`.execute(db);
  await sql`
    insert into virtual_clock select date_trunc('second', now()) where not exists (select from virtual_clock)`.execute(
    db,
  );
  await sql`
    create or replace function carillon_now() returns timestamptz language sql stable parallel safe set jit = off
    as $$ select at from virtual_clock $$`.execute(db);
  return virtualNow(db);
}

/**
 * Gives a database whose clock was virtual the real time back, for good. Returns where the clock stood; undefined when it
 * was real.
 *
 * @throws Error in one line while another process serves the database with a virtual clock.
 */
export async function makeClockReal(db: Db): Promise<Date | undefined> {
  const stoodAt = await virtualClockAt(db);
  if (stoodAt === undefined) return undefined;
  await refuseOthers(db);
  await sql`
    create or replace function carillon_now() returns timestamptz language sql stable parallel safe
    as $$ select now() $$`.execute(db);
  await sql`drop table virtual_clock`.execute(db);
  return stoodAt;
}

/** Moves a virtual clock to that instant. */
export async function moveClock(db: Db, to: Date): Promise<void> {
  await sql`update virtual_clock set at = ${to}`.execute(db);
}

/** Where a virtual clock stands; undefined where the clock is real. */
export async function virtualClockAt(db: Db): Promise<Date | undefined> {
  return (await isClockVirtual(db)) ? virtualNow(db) : undefined;
}

async function isClockVirtual(db: Db): Promise<boolean> {
  const { rows } = await sql<{ found: boolean }>`select to_regclass('virtual_clock') is not null as found`.execute(db);
  return rows[0]?.found ?? false;
}

async function virtualNow(db: Db): Promise<Date> {
  const { rows } = await sql<{ at: Date }>`select at from virtual_clock`.execute(db);
  if (rows[0] === undefined) throw new ClockError("the virtual clock of this database has no time");
  return rows[0].at;
}

async function refuseOthers(db: Db): Promise<void> {
  const { rows } = await sql`
    select from pg_stat_activity where datname = current_database() and application_name = ${SERVING} limit 1`.execute(
    db,
  );
  if (rows.length > 0) {
    throw new ClockError("another Carillon serves this database, and a virtual clock is for one process alone");
  }
}
