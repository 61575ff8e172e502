import { createHmac, createSecretKey, type KeyObject, randomBytes, timingSafeEqual } from "node:crypto";
import type { SigningAlgorithm } from "../domain/signing-key.ts";
import { isOfKeyPair, parsePrivateKey, signWithPrivateKey, verifyWithPublicKey } from "./key-pair.ts";

/** The prefix of secrets that are base64 of the key's bytes. */
const PREFIX = "whsec_";

/** How old or how early a signed request may be, in seconds: what the Standard Webhooks libraries accept. */
const DEFAULT_TOLERANCE_SECONDS = 300;

/** The three headers of Standard Webhooks, version 1 (standardwebhooks.com). */
export interface SignatureHeaders {
  readonly "webhook-id": string;
  readonly "webhook-timestamp": string;
  readonly "webhook-signature": string;
}

/** What signs, ready for use. To make one takes longer than to sign with it. */
export interface SigningKey {
  readonly algorithm: SigningAlgorithm;
  readonly key: KeyObject;
}

/**
 * The key of a text: for `v1` a secret (see `isSecret`), for `v1a` a private key (`whsk_…`).
 * Throws RangeError when it is malformed, or another kind of key.
 */
export function parseSigningKey(algorithm: SigningAlgorithm, text: string): SigningKey {
  return { algorithm, key: algorithm === "v1" ? secretKeyOf(text) : parsePrivateKey(text) };
}

/**
 * Signs a body for Standard Webhooks, over `id.timestamp.body`: `v1,<base64>` by HMAC-SHA256 for each secret, then
 * `v1a,<base64>` by Ed25519 for each private key, so that a receiver that knows either the old or the new one can verify
 * during a rotation.
 * Throws RangeError when there is no secret, when `id` is empty, has a dot or is not plain ASCII, or when the timestamp is not a
 * whole number of seconds.
 */
export function sign(message: {
  readonly id: string;
  readonly timestampSeconds: number;
  readonly body: Uint8Array;
  readonly keys: readonly SigningKey[];
}): SignatureHeaders {
  const { id, timestampSeconds, body, keys } = message;
  // A dot would let one id and timestamp be read as another pair.
  if (!/^[!-\-/-~]+$/.test(id)) throw new RangeError("a webhook id is printable ASCII without dots");
  if (!Number.isSafeInteger(timestampSeconds) || timestampSeconds < 0) throw new RangeError("timestampSeconds");
  const timestamp = String(timestampSeconds);
  const by = (algorithm: SigningAlgorithm, signatureOf: (key: KeyObject) => Buffer): string[] =>
    keys
      .filter((one) => one.algorithm === algorithm)
      .map(({ key }) => `${algorithm},${signatureOf(key).toString("base64")}`);
  const bySecrets = by("v1", (key) => mac(key, id, timestamp, body));
  if (bySecrets.length === 0) throw new RangeError("a request is signed with at least one secret");
  const byPrivateKeys = by("v1a", (key) => signWithPrivateKey(key, signedBytes(id, timestamp, body)));
  return {
    "webhook-id": id,
    "webhook-timestamp": timestamp,
    "webhook-signature": [...bySecrets, ...byPrivateKeys].join(" "),
  };
}

/**
 * Whether the headers carry a signature of exactly these body bytes, made at most `toleranceSeconds` (300) before or after
 * `nowSeconds`: a `v1` one under the secret or, where `secret` is a public key (`whpk_…`), a `v1a` one by its pair.
 * `headers` has lower-case names, as Node gives them. Takes the same time whichever byte of a signature differs.
 * Throws RangeError when the secret or key is malformed.
 */
export function verify(
  headers: Readonly<Record<string, string | readonly string[] | undefined>>,
  body: Uint8Array,
  secret: string,
  { nowSeconds, toleranceSeconds = DEFAULT_TOLERANCE_SECONDS }: { nowSeconds: number; toleranceSeconds?: number },
): boolean {
  const key = isOfKeyPair(secret) ? undefined : secretKeyOf(secret);
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  const signatures = headers["webhook-signature"];
  if (typeof id !== "string" || typeof timestamp !== "string" || typeof signatures !== "string") return false;
  if (!/^\d{1,15}$/.test(timestamp) || Math.abs(nowSeconds - Number(timestamp)) > toleranceSeconds) return false;
  if (key === undefined) {
    const signed = signedBytes(id, timestamp, body);
    return signatures
      .split(" ")
      .filter((signature) => signature.startsWith("v1a,"))
      .some((signature) => verifyWithPublicKey(secret, signed, Buffer.from(signature.slice(4), "base64")));
  }
  const expected = mac(key, id, timestamp, body);
  return signatures.split(" ").some((signature) => {
    if (!signature.startsWith("v1,")) return false;
    const given = Buffer.from(signature.slice(3), "base64");
    return given.length === expected.length && timingSafeEqual(given, expected);
  });
}

/** A new secret: `whsec_` and the base64 of 32 random bytes, the length of the hash. */
export function newSecret(): string {
  return PREFIX + randomBytes(32).toString("base64");
}

/**
 * Whether text can be a secret: not empty, with the prefix `whsec_` followed by padded base64 of a byte or more, and no
 * half of a key pair.
 */
export function isSecret(secret: string): boolean {
  if (isOfKeyPair(secret)) return false;
  if (!secret.startsWith(PREFIX)) return secret !== "";
  const encoded = secret.slice(PREFIX.length);
  return encoded !== "" && Buffer.from(encoded, "base64").toString("base64") === encoded;
}

// A key object, because createHmac takes four times as long where it gets the bytes.
function secretKeyOf(secret: string): KeyObject {
  if (!isSecret(secret)) throw new RangeError("the webhook secret is malformed");
  const isEncoded = secret.startsWith(PREFIX);
  return createSecretKey(Buffer.from(isEncoded ? secret.slice(PREFIX.length) : secret, isEncoded ? "base64" : "utf8"));
}

function signedBytes(id: string, timestamp: string, body: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
}

function mac(key: KeyObject, id: string, timestamp: string, body: Uint8Array): Buffer {
  return createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
}
