import type { Db, ProjectRow } from "../db/schema.ts";
import type { KeyOwner } from "../domain/signing-key.ts";
import { setSigningSecret } from "./signing-keys.ts";

/**
 * Returns the project of this name. When there is none it is made, with a signing secret that `sealSecret` makes and
 * seals. Any number of callers may do it at once: all get the same project.
 */
export async function ensureProject(
  db: Db,
  name: string,
  sealSecret: (project: KeyOwner) => string,
): Promise<ProjectRow> {
  return (await findProject(db, name)) ?? (await db.transaction().execute((trx) => makeProject(trx, name, sealSecret)));
}

async function makeProject(trx: Db, name: string, sealSecret: (project: KeyOwner) => string): Promise<ProjectRow> {
  const made = await trx
    .insertInto("projects")
    .values({ name })
    .onConflict((conflict) => conflict.column("name").doNothing())
    .returningAll()
    .executeTakeFirst();
  if (made === undefined)
    return trx.selectFrom("projects").selectAll().where("name", "=", name).executeTakeFirstOrThrow();
  const owner = { projectId: made.project_id, ownerId: made.project_id };
  await setSigningSecret(trx, owner, sealSecret(owner));
  return made;
}

export async function findProject(db: Db, name: string): Promise<ProjectRow | undefined> {
  return db.selectFrom("projects").selectAll().where("name", "=", name).executeTakeFirst();
}

export async function getProject(db: Db, projectId: string): Promise<ProjectRow | undefined> {
  return db.selectFrom("projects").selectAll().where("project_id", "=", projectId).executeTakeFirst();
}

/** Every project, by name. */
export async function listProjects(db: Db): Promise<ProjectRow[]> {
  return db.selectFrom("projects").selectAll().orderBy("name").execute();
}

/** What a project is strict about; a switch that is left out stays as it is. */
export interface StrictSwitches {
  readonly strictPathBody?: boolean;
  readonly strictFields?: boolean;
}

/** Sets switches of the project of this name and returns it, or undefined when there is none. */
export async function setStrictSwitches(
  db: Db,
  name: string,
  { strictPathBody, strictFields }: StrictSwitches,
): Promise<ProjectRow | undefined> {
  return db
    .updateTable("projects")
    .set((eb) => ({
      strict_path_body: strictPathBody ?? eb.ref("strict_path_body"),
      strict_fields: strictFields ?? eb.ref("strict_fields"),
    }))
    .where("name", "=", name)
    .returningAll()
    .executeTakeFirst();
}
