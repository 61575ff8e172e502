import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createSecretKey,
  type KeyObject,
  randomBytes,
} from "node:crypto";
import type { Place } from "../domain/signing-key.ts";

/** Of the form of a sealed value: `sealed1.<key id>.<base64url of nonce, ciphertext and tag>`. */
const VERSION = "sealed1";
const CIPHER = "aes-256-gcm";
const KEY_BYTES = 32;
/** The length that GCM takes without hashing. Random ones are good for 2^32 values under one key. */
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

interface Key {
  /** The first 8 hexadecimal digits of a hash of the key: it names the key and says nothing of it. */
  readonly id: string;
  /** Made once: Node spends longer on making one of bytes than on a short value. */
  readonly secret: KeyObject;
}

/** A sealed value that cannot be opened: its key is not here, or it is damaged, or it was sealed for another place. */
export class UnsealError extends Error {
  override readonly name = "UnsealError";
}

/**
 * Seals what is secret before it is stored, and opens it where it is used: AES-256-GCM under a key that the database
 * never sees. Several keys are there while one replaces another: the first seals, all of them open.
 */
export class Vault {
  readonly #current: Key;
  readonly #keys: ReadonlyMap<string, Key>;

  /** @param keys 32 bytes each, at least one. @throws RangeError when they are not. */
  constructor(keys: readonly Buffer[]) {
    const named = keys.map((bytes): Key => {
      if (bytes.length !== KEY_BYTES) throw new RangeError(`a key has ${KEY_BYTES} bytes`);
      const id = createHash("sha256").update("carillon key id").update(bytes).digest("hex").slice(0, 8);
      return { id, secret: createSecretKey(bytes) };
    });
    if (named[0] === undefined) throw new RangeError("there is no key");
    this.#current = named[0];
    this.#keys = new Map(named.map((key) => [key.id, key]));
  }

  /** What values that are sealed now begin with: `sealed1.<key id>`. */
  get currentSeal(): string {
    return sealOf(this.#current);
  }

  /** What values that can be opened begin with. */
  get seals(): readonly string[] {
    return [...this.#keys.values()].map(sealOf);
  }

  /** The text or bytes, sealed for that place. Twice the same gives two different results. */
  seal(value: string | Uint8Array, place: Place): string {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv(CIPHER, this.#current.secret, nonce).setAAD(associatedData(place));
    const sealed = Buffer.concat([
      nonce,
      typeof value === "string" ? cipher.update(value, "utf8") : cipher.update(value),
      cipher.final(),
      cipher.getAuthTag(),
    ]);
    return `${this.currentSeal}.${sealed.toString("base64url")}`;
  }

  /** What was sealed for that place. @throws UnsealError, which says nothing of the value. */
  open(sealed: string, place: Place): Buffer {
    const [version, keyId = "", encoded = "", ...rest] = sealed.split(".");
    if (version !== VERSION || rest.length > 0) throw new UnsealError("the value is not sealed");
    const key = this.#keys.get(keyId);
    if (key === undefined) throw new UnsealError(`the value is sealed by the key ${keyId}, which is not here`);
    const bytes = Buffer.from(encoded, "base64url");
    if (bytes.length < NONCE_BYTES + TAG_BYTES) throw new UnsealError("the sealed value is cut short");
    try {
      const decipher = createDecipheriv(CIPHER, key.secret, bytes.subarray(0, NONCE_BYTES), {
        authTagLength: TAG_BYTES,
      });
      decipher.setAAD(associatedData(place)).setAuthTag(bytes.subarray(-TAG_BYTES));
      return Buffer.concat([decipher.update(bytes.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()]);
    } catch (cause) {
      throw new UnsealError("the sealed value is damaged, or was sealed for another place", { cause });
    }
  }

  /** `open` for text. */
  openText(sealed: string, place: Place): string {
    return this.open(sealed, place).toString("utf8");
  }

  /** The same value sealed by the current key; the text itself where it is already. @throws UnsealError */
  reseal(sealed: string, place: Place): string {
    return sealed.startsWith(`${this.currentSeal}.`) ? sealed : this.seal(this.open(sealed, place), place);
  }
}

function sealOf(key: Key): string {
  return `${VERSION}.${key.id}`;
}

/** As JSON, so that no two places give the same bytes. */
function associatedData(place: Place): Buffer {
  return Buffer.from(JSON.stringify(place));
}
