import {
  createPrivateKey,
  createPublicKey,
  sign as cryptoSign,
  verify as cryptoVerify,
  generateKeyPairSync,
  type KeyObject,
} from "node:crypto";

/** The prefixes of Standard Webhooks: base64 of seed and public key, and base64 of the public key. */
const PRIVATE_PREFIX = "whsk_";
const PUBLIC_PREFIX = "whpk_";
/** The length of an Ed25519 seed, and of a public key. */
const KEY_BYTES = 32;

/** An Ed25519 key pair. */
export interface KeyPair {
  /** `whsk_…` */
  readonly privateKey: string;
  /** 32 bytes. */
  readonly publicKey: Buffer;
}

/** A new random key pair. */
export function newKeyPair(): KeyPair {
  const { d = "", x = "" } = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
  const publicKey = Buffer.from(x, "base64url");
  const seed = Buffer.from(d, "base64url");
  return { privateKey: PRIVATE_PREFIX + Buffer.concat([seed, publicKey]).toString("base64"), publicKey };
}

/** The text of a public key: `whpk_…`. */
export function formatPublicKey(publicKey: Uint8Array): string {
  return PUBLIC_PREFIX + Buffer.from(publicKey).toString("base64");
}

/** Whether text is a public or private key of a pair, by its prefix: neither can be a shared secret. */
export function isOfKeyPair(text: string): boolean {
  return text.startsWith(PRIVATE_PREFIX) || text.startsWith(PUBLIC_PREFIX);
}

/** The private key of the text, `whsk_…`. @throws RangeError when it is malformed. */
export function parsePrivateKey(text: string): KeyObject {
  const bytes = decode(text, PRIVATE_PREFIX, 2 * KEY_BYTES);
  const d = bytes.subarray(0, KEY_BYTES).toString("base64url");
  const x = bytes.subarray(KEY_BYTES).toString("base64url");
  return createPrivateKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", d, x } });
}

/** The Ed25519 signature of the bytes, 64 bytes. */
export function signWithPrivateKey(privateKey: KeyObject, signed: Uint8Array): Buffer {
  return cryptoSign(null, signed, privateKey);
}

/** Whether the signature is one of these bytes by this key pair. @throws RangeError when the public key is malformed. */
export function verifyWithPublicKey(publicKey: string, signed: Uint8Array, signature: Uint8Array): boolean {
  const x = decode(publicKey, PUBLIC_PREFIX, KEY_BYTES).toString("base64url");
  return cryptoVerify(
    null,
    signed,
    createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", x } }),
    signature,
  );
}

function decode(text: string, prefix: string, length: number): Buffer {
  const bytes = Buffer.from(text.slice(prefix.length), "base64");
  if (!text.startsWith(prefix) || bytes.length !== length) throw new RangeError("the key of the pair is malformed");
  return bytes;
}
