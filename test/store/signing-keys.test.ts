import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type KeyOwner, keyPlace, pingTokenPlace } from "../../src/domain/signing-key.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { missingVaultKeys, resealAll, sealPlainKeys } from "../../src/store/sealed-values.ts";
import { pruneSigningKeys, replaceSigningKey, setSigningSecret, signersOf } from "../../src/store/signing-keys.ts";
import { parseVault } from "../../src/vault/keys.ts";
import { newKeyPair } from "../../src/webhook/key-pair.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { signsWith, TEST_SECRETS_KEY, TEST_VAULT } from "../support/signing.ts";

let t: TestDatabase;
beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());

let projects = 0;
async function makeProject(secret = "of the project"): Promise<KeyOwner> {
  const { project_id: id } = await ensureProject(t.db, `project-${projects++}`, signsWith(secret));
  return { projectId: id, ownerId: id };
}

/** An owner within the project; what it is does not matter. */
function someOwner({ projectId }: KeyOwner): KeyOwner {
  return { projectId, ownerId: crypto.randomUUID() };
}

const seal = (owner: KeyOwner, secret: string): string => TEST_VAULT.seal(secret, keyPlace(owner, "v1"));

function replace(owner: KeyOwner, secret: string, overlapSeconds: number) {
  const key = { algorithm: "v1", sealed: seal(owner, secret), publicKey: null } as const;
  return t.db.transaction().execute((trx) => replaceSigningKey(trx, owner, key, overlapSeconds));
}

/** The keys that sign for the owner, opened. */
async function signers({ projectId, ownerId }: KeyOwner): Promise<string[]> {
  const { rows } = await sql<{
    keys: { projectId: string; ownerId: string; algorithm: "v1" | "v1a"; sealed: string }[];
  }>`
    select ${signersOf(sql`${projectId}::uuid`, sql`${ownerId}::uuid`)} as keys`.execute(t.db);
  return (rows[0]?.keys ?? []).map((key) => TEST_VAULT.openText(key.sealed, keyPlace(key, key.algorithm)));
}

describe("what signs", () => {
  test("is the owner's secret, or its project's where it has none, and never another project's", async () => {
    const project = await makeProject();
    await makeProject("of another project");
    const owner = someOwner(project);
    expect(await signers(owner)).toEqual(["of the project"]);
    await setSigningSecret(t.db, owner, seal(owner, "its own"));
    expect(await signers(owner)).toEqual(["its own"]);
    expect(await signers(project)).toEqual(["of the project"]);
    await setSigningSecret(t.db, owner, null);
    expect(await signers(owner)).toEqual(["of the project"]);
  });

  test("is the new secret first and the old one until its overlap ends", async () => {
    const project = await makeProject("first");
    const { previousValidUntil } = await replace(project, "second", 3_600);
    const expected = (await t.now()).getTime() + 3_600_000;
    expect(Math.abs((previousValidUntil?.getTime() ?? 0) - expected)).toBeLessThan(10_000);
    expect(await signers(someOwner(project))).toEqual(["second", "first"]);
    await t.advanceClock(3_700);
    expect(await signers(project)).toEqual(["second"]);
    await replace(project, "third", 0);
    expect(await signers(project)).toEqual(["third"]);
  });

  test("is four keys of a kind at most: one more replacement ends the oldest", async () => {
    const project = await makeProject("1");
    for (const secret of ["2", "3", "4", "5"]) await replace(project, secret, 3_600);
    expect((await signers(project)).sort()).toEqual(["2", "3", "4", "5"]);
  });

  test("is the project's key pairs too, beside the owner's own secret", async () => {
    const project = await makeProject();
    const owner = someOwner(project);
    await setSigningSecret(t.db, owner, seal(owner, "its own"));
    const { privateKey, publicKey } = newKeyPair();
    const sealed = TEST_VAULT.seal(privateKey, keyPlace(project, "v1a"));
    await replaceSigningKey(t.db, project, { algorithm: "v1a", sealed, publicKey }, 60);
    expect((await signers(owner)).sort()).toEqual(["its own", privateKey].sort());
  });

  test("has one current key, when many replace it at once", async () => {
    const project = await makeProject();
    await Promise.all(Array.from({ length: 8 }, (_, i) => replace(project, `s${i}`, 3_600)));
    const current = await t.db
      .selectFrom("signing_keys")
      .selectAll()
      .where("project_id", "=", project.projectId)
      .where("valid_until", "is", null)
      .execute();
    expect(current).toHaveLength(1);
  });
});

test("ended keys are pruned, live ones are not", async () => {
  const project = await makeProject();
  await replace(project, "next", 60);
  await t.advanceClock(120);
  expect(await pruneSigningKeys(t.db, 1_000)).toBe(1);
  expect(await pruneSigningKeys(t.db, 1_000)).toBe(0);
  expect(await signers(project)).toEqual(["next"]);
});

test("keys go with a cron job, a task, a push subscription or an event webhook, and with nothing else", async () => {
  const project = await makeProject();
  const kept = someOwner(project);
  await setSigningSecret(t.db, kept, seal(kept, "kept"));
  const insert = {
    cron_jobs: sql`insert into cron_jobs (project_id, name, cron_expr, timezone, url, content_type, headers, retries,
        timeout_seconds, overlap_policy, retention_days, misfire_policy, misfire_window_seconds, state)
      values (${project.projectId}, '', '', '', '', '', '{}', 0, 1, 'skip', 1, 'once', 1, 'paused') returning cron_id as id`,
    tasks: sql`insert into tasks (project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state)
      values (${project.projectId}, '', '', '', '{}', 0, 1, now(), 'failed') returning task_id as id`,
    push_subscriptions: sql`insert into push_subscriptions (project_id, queue_id, url, mode)
      values (${project.projectId}, gen_random_uuid(), '', 'compete') returning subscription_id as id`,
    event_webhooks: sql`insert into event_webhooks (project_id, name, url, event_types)
      values (${project.projectId}, '', '', '{}') returning webhook_id as id`,
  };
  for (const [table, statement] of Object.entries(insert)) {
    const ownerId = (await statement.execute(t.db)).rows.map((row) => (row as { id: string }).id)[0] ?? "";
    const owner = { projectId: project.projectId, ownerId };
    await setSigningSecret(t.db, owner, seal(owner, "its own"));
    await sql`delete from ${sql.table(table)} where project_id = ${project.projectId}`.execute(t.db);
    const left = t.db.selectFrom("signing_keys").select("owner_id").where("owner_id", "=", ownerId);
    expect(await left.execute(), table).toEqual([]);
  }
  expect(await signers(kept)).toEqual(["kept"]);
});

describe("what is stored", () => {
  test("as text by a migration is sealed, once, and signs as before", async () => {
    const project = await makeProject();
    const owner = someOwner(project);
    await setSigningSecret(t.db, owner, "plain.whsec_c2VjcmV0.with dots");
    const sealPlain = () => sealPlainKeys(t.db, (text, place) => TEST_VAULT.seal(text, place));
    const counts = await Promise.all([sealPlain(), sealPlain()]);
    expect(counts.reduce((a, b) => a + b)).toBe(1);
    expect(await signers(owner)).toEqual(["whsec_c2VjcmV0.with dots"]);
  });

  test("is sealed by a new key in the end, keys and headers alike, and the old key is not missed", async () => {
    const project = await makeProject("rotated");
    const newKey = Buffer.alloc(32, "newer").toString("base64");
    const both = parseVault(`${newKey} ${TEST_SECRETS_KEY}`);
    const tokenPlace = pingTokenPlace(project);
    await sql`
      insert into cron_jobs (project_id, cron_id, name, cron_expr, timezone, url, content_type, headers, retries,
        timeout_seconds, overlap_policy, retention_days, misfire_policy, misfire_window_seconds, state, ping_token)
      values (${project.projectId}, ${project.ownerId}, 'm', '@daily', 'UTC', null, 'text/plain', '{}', 0, 30, 'allow', 1, 'once',
        10, 'active', ${TEST_VAULT.seal("a token", tokenPlace)})`.execute(t.db);
    const only = parseVault(newKey);
    expect(await missingVaultKeys(t.db, only.seals)).toEqual([TEST_VAULT.currentSeal.split(".")[1]]);
    expect(await resealAll(t.db, both.currentSeal, (value, place) => both.reseal(value, place))).toBeGreaterThan(0);
    expect(await missingVaultKeys(t.db, only.seals)).toEqual([]);
    expect(await resealAll(t.db, both.currentSeal, (value, place) => both.reseal(value, place))).toBe(0);
    const { sealed } = await t.db
      .selectFrom("signing_keys")
      .select("sealed")
      .where("owner_id", "=", project.ownerId)
      .executeTakeFirstOrThrow();
    expect(only.openText(sealed, keyPlace(project, "v1"))).toBe("rotated");
    const { ping_token } = await t.db
      .selectFrom("cron_jobs")
      .select("ping_token")
      .where("cron_id", "=", project.ownerId)
      .executeTakeFirstOrThrow();
    expect(only.openText(ping_token ?? "", tokenPlace)).toBe("a token");
  });
});
