import { type Timestamp, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { Db } from "../db/schema.ts";
import { type KeyOwner, keyPlace } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import { currentSigningKey, replaceSigningKey, setSigningSecret } from "../store/signing-keys.ts";
import type { Vault } from "../vault/vault.ts";
import { isOfKeyPair } from "../webhook/key-pair.ts";
import { isSecret, newSecret } from "../webhook/sign.ts";

/** Seconds for which an old key signs beside the new one where the caller does not say. */
export const ROTATION_OVERLAP_SECONDS = 86_400;

/** Checks a signing secret that a caller gives; the empty one means that none is given. @throws Refusal FIELD_INVALID */
export function checkSecret(secret: string): void {
  if (isOfKeyPair(secret)) throw Refusal.field("secret", "must be a shared secret, not a key of a pair");
  if (secret !== "" && !isSecret(secret)) throw Refusal.field("secret", "after whsec_ must be padded base64");
}

/** A signing secret as it is stored. */
export function sealSecret(vault: Vault, owner: KeyOwner, secret: string): string {
  return vault.seal(secret, keyPlace(owner, "v1"));
}

/** What a caller asks for who rotates a secret. */
interface Rotation {
  /** Empty: a generated one. */
  readonly secret: string;
  readonly overlapSeconds?: number | undefined;
}

/** What the answer to such a call says. */
interface Rotated {
  /** The generated one. */
  readonly secret?: string;
  readonly previousValidUntil?: Timestamp;
}

/** Rotates the owner's secret as a caller asks, whose secret `checkSecret` has let pass. */
export async function rotateAsAsked(vault: Vault, trx: Db, owner: KeyOwner, asked: Rotation): Promise<Rotated> {
  const secret = asked.secret || newSecret();
  const overlapSeconds = asked.overlapSeconds ?? ROTATION_OVERLAP_SECONDS;
  const { previousValidUntil } = await rotateSecret(vault, trx, owner, secret, overlapSeconds);
  return {
    ...(asked.secret === "" && { secret }),
    ...(previousValidUntil !== undefined && { previousValidUntil: timestampFromDate(previousValidUntil) }),
  };
}

/**
 * Makes `secret` the one that signs for the owner, and has the one before it sign as well for `overlapSeconds`: its own or,
 * where it had none, that of its project. The one that signs already stays what it is, as does the overlap of those before it.
 * Returns the owner's key, and when the old one ends.
 */
export async function rotateSecret(
  vault: Vault,
  trx: Db,
  owner: KeyOwner,
  secret: string,
  overlapSeconds: number,
): ReturnType<typeof replaceSigningKey> {
  let current = await currentSigningKey(trx, owner, "v1");
  if (current === undefined) {
    const project = { projectId: owner.projectId, ownerId: owner.projectId };
    const inherited = await currentSigningKey(trx, project, "v1");
    // Sealed again, because what is sealed for the project cannot be opened for another.
    const secretOfProject = inherited && vault.openText(inherited.sealed, keyPlace(project, "v1"));
    if (secretOfProject) await setSigningSecret(trx, owner, sealSecret(vault, owner, secretOfProject));
    current = await currentSigningKey(trx, owner, "v1");
  }
  if (current && vault.openText(current.sealed, keyPlace(owner, "v1")) === secret) {
    return { row: current, previousValidUntil: undefined };
  }
  const key = { algorithm: "v1", sealed: sealSecret(vault, owner, secret), publicKey: null } as const;
  return replaceSigningKey(trx, owner, key, overlapSeconds);
}
