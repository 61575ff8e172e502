/** How a key signs: `v1` is HMAC-SHA256 with a shared secret, `v1a` is Ed25519 with a key pair (Standard Webhooks). */
export type SigningAlgorithm = "v1" | "v1a";

/** Who signs with a key: a project itself (its own id), or a cron job, task, push subscription or event webhook of it. */
export interface KeyOwner {
  readonly projectId: string;
  readonly ownerId: string;
}

/** A key as it is stored: sealed, so that it says nothing to whoever reads the row. */
export interface SealedKey extends KeyOwner {
  readonly algorithm: SigningAlgorithm;
  readonly sealed: string;
}

/**
 * Where a sealed value belongs: project, table, the row's id or key, column. A value that is moved to another row, by
 * whatever can write to the database, cannot be opened there.
 */
export type Place = readonly [projectId: string, table: string, ...rowAndColumn: string[]];

/** The place of a signing key. The key that is current and those that end share it. */
export function keyPlace({ projectId, ownerId }: KeyOwner, algorithm: SigningAlgorithm): Place {
  return [projectId, "signing_keys", ownerId, algorithm];
}

/** Before the sealed value of a header. No header's own value can begin so: it is a control character. */
export const SEALED_HEADER_MARK = "\u0001";

/** The place of the value of a header that requests of this owner carry. */
export function headerPlace({ projectId, ownerId }: KeyOwner, name: string): Place {
  return [projectId, "headers", ownerId, name];
}

/** The place of the token that a monitor is pinged by. */
export function pingTokenPlace({ projectId, ownerId }: KeyOwner): Place {
  return [projectId, "cron_jobs", ownerId, "ping_token"];
}
