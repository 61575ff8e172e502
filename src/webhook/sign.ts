import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";

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

/**
 * Signs a body for Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, one `v1,<base64>` for each secret, so that
 * a receiver that knows either the old or the new secret can verify during a rotation.
 * Throws RangeError when there is no secret, when a secret is malformed (see `isSecret`), when `id` is empty, has a dot
 * or is not plain ASCII, or when the timestamp is not a whole number of seconds.
 */
export function sign(message: {
  readonly id: string;
  readonly timestampSeconds: number;
  readonly body: Uint8Array;
  readonly secrets: readonly string[];
}): SignatureHeaders {
  const { id, timestampSeconds, body, secrets } = message;
  // A dot would let one id and timestamp be read as another pair.
  if (!/^[!-\-/-~]+$/.test(id)) throw new RangeError("a webhook id is printable ASCII without dots");
  if (!Number.isSafeInteger(timestampSeconds) || timestampSeconds < 0) throw new RangeError("timestampSeconds");
  if (secrets.length === 0) throw new RangeError("a request is signed with at least one secret");
  const timestamp = String(timestampSeconds);
  return {
    "webhook-id": id,
    "webhook-timestamp": timestamp,
    "webhook-signature": secrets
      .map((secret) => `v1,${mac(keyOf(secret), id, timestamp, body).toString("base64")}`)
      .join(" "),
  };
}

/**
 * Whether the headers carry a `v1` signature of exactly these body bytes under the secret, made at most
 * `toleranceSeconds` (300) before or after `nowSeconds`. `headers` has lower-case names, as Node gives them.
 * Takes the same time whichever byte of a signature differs. Throws RangeError when the secret is malformed.
 */
export function verify(
  headers: Readonly<Record<string, string | readonly string[] | undefined>>,
  body: Uint8Array,
  secret: string,
  { nowSeconds, toleranceSeconds = DEFAULT_TOLERANCE_SECONDS }: { nowSeconds: number; toleranceSeconds?: number },
): boolean {
  const key = keyOf(secret);
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  const signatures = headers["webhook-signature"];
  if (typeof id !== "string" || typeof timestamp !== "string" || typeof signatures !== "string") return false;
  if (!/^\d{1,15}$/.test(timestamp) || Math.abs(nowSeconds - Number(timestamp)) > toleranceSeconds) return false;
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

/** Whether text can be a secret: not empty, and with the prefix `whsec_` followed by padded base64 of a byte or more. */
export function isSecret(secret: string): boolean {
  if (!secret.startsWith(PREFIX)) return secret !== "";
  const encoded = secret.slice(PREFIX.length);
  return encoded !== "" && Buffer.from(encoded, "base64").toString("base64") === encoded;
}

function keyOf(secret: string): Buffer {
  if (!isSecret(secret)) throw new RangeError("the webhook secret is malformed");
  return secret.startsWith(PREFIX) ? Buffer.from(secret.slice(PREFIX.length), "base64") : Buffer.from(secret, "utf8");
}

function mac(key: Buffer, id: string, timestamp: string, body: Uint8Array): Buffer {
  return createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
}
