import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import {
  headerPlace,
  keyPlace,
  type Place,
  pingTokenPlace,
  SEALED_HEADER_MARK,
  type SigningAlgorithm,
} from "../domain/signing-key.ts";

/** Before a value that a migration moved and that nothing has sealed yet. */
const PLAIN = "plain.";
/** Rows that one statement reads. */
const STEP = 500;

/** Gives a stored value its new form; the same where it is well as it is. */
type Rewrite = (stored: string, place: Place) => string;

/** Seals the signing keys that a migration left plain, whichever node comes first. Returns how many. */
export async function sealPlainKeys(db: Db, seal: (text: string, place: Place) => string): Promise<number> {
  return rewriteKeys(db, PLAIN, (stored, place) => seal(stored.slice(PLAIN.length), place));
}

/** What seals the signing keys: `sealed1.<key id>` for each key of a vault, in order, and `plain.…` where none does. */
async function sealsInUse(db: Db): Promise<string[]> {
  // Looks once for each seal, not at each row.
  const { rows } = await sql<{ seal: string }>`
    with recursive seals as (
      (select left(sealed, 16) collate "C" as seal from signing_keys order by 1 limit 1)
      union all
      select (select left(k.sealed, 16) collate "C" from signing_keys k
              where left(k.sealed, 16) collate "C" > s.seal order by 1 limit 1)
      from seals s where s.seal is not null)
    select case when seal like ${`${PLAIN}%`} then ${PLAIN} else seal end as seal from seals where seal is not null`.execute(
    db,
  );
  return [...new Set(rows.map(({ seal }) => seal))];
}

/** The ids of the vault keys that signing keys are sealed by and that are not among `seals`. */
export async function missingVaultKeys(db: Db, seals: readonly string[]): Promise<string[]> {
  const missing = (await sealsInUse(db)).filter((seal) => seal !== PLAIN && !seals.includes(seal));
  return missing.map((seal) => seal.slice(seal.indexOf(".") + 1));
}

/**
 * Has every sealed value rewritten by `reseal`: signing keys, ping tokens, and headers of cron jobs, tasks and push
 * subscriptions. Nobody waits for it: a row that changes meanwhile is left as it is then. Returns how many values changed.
 */
export async function resealAll(db: Db, currentSeal: string, reseal: Rewrite): Promise<number> {
  let changed = 0;
  for (const seal of await sealsInUse(db)) {
    if (seal !== currentSeal && seal !== PLAIN) changed += await rewriteKeys(db, seal, reseal);
  }
  changed += await rewritePingTokens(db, currentSeal, reseal);
  for (const owner of HEADER_OWNERS) changed += await rewriteHeaders(db, owner, currentSeal, reseal);
  return changed;
}

/** Rewrites the keys whose stored form begins with `beginning`. */
async function rewriteKeys(db: Db, beginning: string, rewrite: Rewrite): Promise<number> {
  let changed = 0;
  for (;;) {
    const { rows } = await sql<{
      project_id: string;
      owner_id: string;
      key_id: string;
      algorithm: SigningAlgorithm;
      sealed: string;
    }>`
      select project_id, owner_id, key_id, algorithm, sealed from signing_keys
      where left(sealed, 16) collate "C" >= ${beginning} and left(sealed, 16) collate "C" < ${successor(beginning)}
      limit ${STEP}`.execute(db);
    if (rows.length === 0) return changed;
    const rewritten = rows.map(({ project_id, owner_id, key_id, algorithm, sealed }) => ({
      project_id,
      owner_id,
      key_id,
      before: sealed,
      after: rewrite(sealed, keyPlace({ projectId: project_id, ownerId: owner_id }, algorithm)),
    }));
    const { numAffectedRows } = await sql`
      update signing_keys k set sealed = r.after
      from jsonb_to_recordset(${JSON.stringify(rewritten)}::jsonb)
        as r (project_id uuid, owner_id uuid, key_id uuid, before text, after text)
      where k.project_id = r.project_id and k.owner_id = r.owner_id and k.key_id = r.key_id
        and k.sealed = r.before`.execute(db);
    changed += Number(numAffectedRows ?? 0n);
  }
}

async function rewritePingTokens(db: Db, currentSeal: string, rewrite: Rewrite): Promise<number> {
  let changed = 0;
  for (;;) {
    const { rows } = await sql<{ project_id: string; cron_id: string; ping_token: string }>`
      select project_id, cron_id, ping_token from cron_jobs
      where ping_token is not null and not starts_with(ping_token, ${`${currentSeal}.`}) limit ${STEP}`.execute(db);
    if (rows.length === 0) return changed;
    const rewritten = rows.map(({ project_id, cron_id, ping_token }) => ({
      project_id,
      cron_id,
      before: ping_token,
      after: rewrite(ping_token, pingTokenPlace({ projectId: project_id, ownerId: cron_id })),
    }));
    const { numAffectedRows } = await sql`
      update cron_jobs c set ping_token = r.after
      from jsonb_to_recordset(${JSON.stringify(rewritten)}::jsonb)
        as r (project_id uuid, cron_id uuid, before text, after text)
      where c.project_id = r.project_id and c.cron_id = r.cron_id and c.ping_token = r.before`.execute(db);
    changed += Number(numAffectedRows ?? 0n);
  }
}

const HEADER_OWNERS = [
  { table: "cron_jobs", id: "cron_id" },
  { table: "tasks", id: "task_id" },
  { table: "push_subscriptions", id: "subscription_id" },
] as const;

async function rewriteHeaders(
  db: Db,
  { table, id }: (typeof HEADER_OWNERS)[number],
  currentSeal: string,
  rewrite: Rewrite,
): Promise<number> {
  const ofTable = sql.table(table);
  const idColumn = sql.ref(id);
  let changed = 0;
  let last = { project_id: "00000000-0000-0000-0000-000000000000", id: "00000000-0000-0000-0000-000000000000" };
  for (;;) {
    // A sealed value may stand beside others, so rows are walked by their key and not by what is left to do.
    const { rows } = await sql<{ project_id: string; id: string; headers: Record<string, string> }>`
      select project_id, ${idColumn} as id, headers from ${ofTable}
      where (project_id, ${idColumn}) > (${last.project_id}, ${last.id})
        and headers::text like ${`%"\\\\u0001sealed1.%`} order by project_id, ${idColumn} limit ${STEP}`.execute(db);
    for (const row of rows) {
      last = row;
      const owner = { projectId: row.project_id, ownerId: row.id };
      const after = Object.fromEntries(
        Object.entries(row.headers).map(([name, value]) => {
          if (!value.startsWith(SEALED_HEADER_MARK) || value.startsWith(SEALED_HEADER_MARK + currentSeal)) {
            return [name, value];
          }
          return [name, SEALED_HEADER_MARK + rewrite(value.slice(SEALED_HEADER_MARK.length), headerPlace(owner, name))];
        }),
      );
      if (JSON.stringify(after) === JSON.stringify(row.headers)) continue;
      const { numAffectedRows } = await sql`
        update ${ofTable} set headers = ${JSON.stringify(after)}
        where project_id = ${row.project_id} and ${idColumn} = ${row.id} and headers = ${JSON.stringify(row.headers)}::jsonb`.execute(
        db,
      );
      changed += Number(numAffectedRows ?? 0n);
    }
    if (rows.length < STEP) return changed;
  }
}

/** The least text that is greater than every text which begins with `beginning`; its last character is ASCII. */
function successor(beginning: string): string {
  return beginning.slice(0, -1) + String.fromCharCode(beginning.charCodeAt(beginning.length - 1) + 1);
}
