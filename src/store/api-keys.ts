import { sql } from "kysely";
import type { Db } from "../db/schema.ts";

export interface NewApiKey {
  readonly projectId: string;
  /** SHA-256 of the key. The key itself is never stored. */
  readonly keyHash: Buffer;
  /** For people. */
  readonly name: string;
  /** The key's first characters, for people. */
  readonly hint: string;
}

/** Stores a key and returns its id, or undefined when the very same key is stored already. */
export async function createApiKey(db: Db, key: NewApiKey): Promise<string | undefined> {
  const row = await db
    .insertInto("api_keys")
    .values({
      project_id: key.projectId,
      key_hash: key.keyHash,
      name: key.name,
      hint: key.hint,
      revoked_at: null,
    })
    .onConflict((conflict) => conflict.column("key_hash").doNothing())
    .returning("key_id")
    .executeTakeFirst();
  return row?.key_id;
}

export interface ApiKeyRow {
  readonly key_id: string;
  readonly project: string;
  readonly name: string;
  readonly hint: string;
  readonly created_at: Date;
  readonly revoked_at: Date | null;
}

/** Every key of the project of this name, or of all projects, oldest first; revoked ones too. */
export async function listApiKeys(db: Db, project?: string): Promise<ApiKeyRow[]> {
  return db
    .selectFrom("api_keys")
    .innerJoin("projects", "projects.project_id", "api_keys.project_id")
    .select([
      "api_keys.key_id",
      "projects.name as project",
      "api_keys.name",
      "api_keys.hint",
      "api_keys.created_at",
      "api_keys.revoked_at",
    ])
    .$if(project !== undefined, (query) => query.where("projects.name", "=", project ?? ""))
    .orderBy("api_keys.key_id")
    .execute();
}

export type RevokeOutcome = "revoked" | "already_revoked" | "missing";

/** Revokes a key. Nodes that have just used it go on accepting it for as long as they remember it. */
export async function revokeApiKey(db: Db, keyId: string): Promise<RevokeOutcome> {
  const { numUpdatedRows } = await db
    .updateTable("api_keys")
    .set({ revoked_at: sql<Date>`now()` })
    .where("key_id", "=", keyId)
    .where("revoked_at", "is", null)
    .executeTakeFirst();
  if (numUpdatedRows > 0n) return "revoked";
  const row = await db.selectFrom("api_keys").select("key_id").where("key_id", "=", keyId).executeTakeFirst();
  return row === undefined ? "missing" : "already_revoked";
}

export interface KeyOwner {
  readonly project_id: string;
  readonly strict_path_body: boolean;
  readonly strict_fields: boolean;
}

/** The project that the key with this hash opens, or undefined when the key is not known or is revoked. */
export async function findKeyOwner(db: Db, keyHash: Buffer): Promise<KeyOwner | undefined> {
  return db
    .selectFrom("api_keys")
    .innerJoin("projects", "projects.project_id", "api_keys.project_id")
    .select(["projects.project_id", "projects.strict_path_body", "projects.strict_fields"])
    .where("api_keys.key_hash", "=", keyHash)
    .where("api_keys.revoked_at", "is", null)
    .executeTakeFirst();
}
