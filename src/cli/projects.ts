import type { Db } from "../db/schema.ts";
import { keyPlace } from "../domain/signing-key.ts";
import { findProject, listProjects, setStrictSwitches } from "../store/projects.ts";
import { currentSigningKey } from "../store/signing-keys.ts";
import type { Vault } from "../vault/vault.ts";
import { CommandError } from "./failure.ts";
import { openMigratedDatabase } from "./open-database.ts";
import { formatTable } from "./table.ts";

/** `carillon projects list`. */
export async function showProjects({ json }: { json?: true }): Promise<number> {
  await using database = await openMigratedDatabase();
  const rows = (await listProjects(database.db)).map((row) => ({
    project: row.name,
    strict_path_body: row.strict_path_body,
    strict_fields: row.strict_fields,
    created_at: row.created_at.toISOString(),
  }));
  if (json) console.log(JSON.stringify(rows));
  else if (rows.length === 0) console.log("no projects; carillon keys create --project NAME makes one");
  else {
    const cells = rows.map((row) => [
      row.project,
      onOff(row.strict_path_body),
      onOff(row.strict_fields),
      row.created_at,
    ]);
    console.log(formatTable(["PROJECT", "STRICT PATH", "STRICT FIELDS", "CREATED"], cells));
  }
  return 0;
}

export interface StrictOptions {
  readonly pathBody?: boolean;
  readonly fields?: boolean;
}

/** `carillon projects strict`: running servers follow within 5 seconds. */
export async function setStrict(project: string, { pathBody, fields }: StrictOptions): Promise<number> {
  if (pathBody === undefined && fields === undefined) throw new CommandError("name a switch: --path-body or --fields");
  await using database = await openMigratedDatabase();
  const row = await setStrictSwitches(database.db, project, {
    ...(pathBody !== undefined && { strictPathBody: pathBody }),
    ...(fields !== undefined && { strictFields: fields }),
  });
  if (row === undefined) throw noProject(project);
  console.log(`${project}: strict path ${onOff(row.strict_path_body)}, strict fields ${onOff(row.strict_fields)}`);
  return 0;
}

/** `carillon projects signing-secret`: what receivers of a project verify with where no other secret was set. */
export async function showSigningSecret(project: string): Promise<number> {
  await using database = await openMigratedDatabase();
  const secret = await readSigningSecret(database.db, project, () => database.openVault());
  if (secret === undefined) throw noProject(project);
  console.log(secret);
  return 0;
}

/** The current signing secret of the project of this name; undefined when there is no such project. */
export async function readSigningSecret(
  db: Db,
  project: string,
  openVault: () => Promise<Vault>,
): Promise<string | undefined> {
  const row = await findProject(db, project);
  if (row === undefined) return undefined;
  const owner = { projectId: row.project_id, ownerId: row.project_id };
  const key = await currentSigningKey(db, owner, "v1");
  return key && (await openVault()).openText(key.sealed, keyPlace(owner, "v1"));
}

function noProject(name: string): CommandError {
  return new CommandError(`there is no project ${name}; carillon projects list shows them`);
}

function onOff(value: boolean): string {
  return value ? "on" : "off";
}
