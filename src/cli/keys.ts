import { apiKeyHint, hashApiKey, newApiKey } from "../domain/api-key.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { keyPlace } from "../domain/signing-key.ts";
import { createApiKey, listApiKeys, revokeApiKey } from "../store/api-keys.ts";
import { ensureProject } from "../store/projects.ts";
import { newSecret } from "../webhook/sign.ts";
import { CommandError } from "./failure.ts";
import { openMigratedDatabase } from "./open-database.ts";
import { formatTable } from "./table.ts";

export interface CreateKeyOptions {
  readonly project: string;
  readonly name: string;
  readonly json?: true;
}

/** `carillon keys create`: makes a key, and its project where it does not exist, and prints the key this one time. */
export async function createKey({ project, name, json }: CreateKeyOptions): Promise<number> {
  if (!/^[A-Za-z0-9._-]{1,128}$/.test(project)) {
    throw new CommandError("--project is 1 to 128 letters, digits, dots, dashes and underscores");
  }
  if (name.length > 200) throw new CommandError("--name is at most 200 characters");
  await using database = await openMigratedDatabase();
  const vault = await database.openVault();
  const { project_id: projectId } = await ensureProject(database.db, project, (owner) =>
    vault.seal(newSecret(), keyPlace(owner, "v1")),
  );
  const key = newApiKey();
  const keyHash = hashApiKey(key);
  const keyId = await createApiKey(database.db, { projectId, keyHash, name, hint: apiKeyHint(key) });
  if (keyId === undefined) throw new CommandError("the random key exists already; try again");
  const id = formatId("key", keyId);
  if (json) console.log(JSON.stringify({ key_id: id, project, name, key }));
  else console.log(`${key}\n\nKey ${id} of project ${project}. It is shown this once and stored only as a hash.`);
  return 0;
}

/** `carillon keys list`. */
export async function listKeys({ project, json }: { project?: string; json?: true }): Promise<number> {
  await using database = await openMigratedDatabase();
  const rows = (await listApiKeys(database.db, project)).map((row) => ({
    key_id: formatId("key", row.key_id),
    project: row.project,
    name: row.name,
    hint: row.hint,
    created_at: row.created_at.toISOString(),
    revoked_at: row.revoked_at?.toISOString() ?? null,
  }));
  if (json) console.log(JSON.stringify(rows));
  else if (rows.length === 0) console.log("no keys; make one with carillon keys create --project NAME");
  else {
    const cells = rows.map((row) => [...Object.values(row).slice(0, 5), row.revoked_at ?? "-"].map(String));
    console.log(formatTable(["KEY", "PROJECT", "NAME", "BEGINS", "CREATED", "REVOKED"], cells));
  }
  return 0;
}

/** `carillon keys revoke`: running servers refuse the key within 5 seconds. Repeating it changes nothing. */
export async function revokeKey(id: string): Promise<number> {
  const keyId = parseId("key", id);
  await using database = await openMigratedDatabase();
  const outcome = keyId === undefined ? "missing" : await revokeApiKey(database.db, keyId);
  if (outcome === "missing") throw new CommandError(`there is no key ${id}; carillon keys list shows the ids`);
  console.log(
    outcome === "revoked" ? `${id} is revoked; running servers refuse it within 5 s` : `${id} was revoked before`,
  );
  return 0;
}
