import { hash, randomBytes } from "node:crypto";

/** What keys of our own making begin with, so that secret scanners and people know them. */
const PREFIX = "crl_";
/** 30 characters of base 62 are 178 random bits. */
const RANDOM_LENGTH = 30;
/** 62^6 is more than the 2^32 values of the checksum. */
const CHECK_LENGTH = 6;
const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SHAPE = new RegExp(`^${PREFIX}[0-9A-Za-z]{${RANDOM_LENGTH + CHECK_LENGTH}}$`);

/** A new key: `crl_`, 30 random characters and 6 that check them. `random` returns as many random bytes as it is asked for. */
export function newApiKey(random: (size: number) => Uint8Array = randomBytes): string {
  let key = PREFIX;
  while (key.length < PREFIX.length + RANDOM_LENGTH) {
    for (const byte of random(RANDOM_LENGTH)) {
      // 248 is four times 62; the bytes above it would make the first characters likelier.
      if (byte < 248 && key.length < PREFIX.length + RANDOM_LENGTH) key += ALPHABET[byte % 62];
    }
  }
  return key + checkCharacters(key);
}

/**
 * Whether the key has the form of our own keys and its check characters do not fit: it is mistyped or made up, and no
 * database needs to be asked. False for every other text, which may be a key from elsewhere.
 */
export function isMistyped(key: string): boolean {
  return SHAPE.test(key) && checkCharacters(key.slice(0, -CHECK_LENGTH)) !== key.slice(-CHECK_LENGTH);
}

/** What is stored of a key: its SHA-256. The keys are random, so a slow hash would add nothing. */
export function hashApiKey(key: string): Buffer {
  return hash("sha256", key, "buffer");
}

/** The first characters of a key, by which people tell keys apart: at most 8, and never more than a third of the key. */
export function apiKeyHint(key: string): string {
  return `${key.slice(0, Math.min(8, Math.floor(key.length / 3)))}…`;
}

function checkCharacters(text: string): string {
  let rest = crc32(text);
  let characters = "";
  for (let i = 0; i < CHECK_LENGTH; i++) {
    characters = ALPHABET[rest % 62] + characters;
    rest = Math.floor(rest / 62);
  }
  return characters;
}

/** CRC-32 of ASCII text as in ISO 3309 and zip: reflected, polynomial 0xEDB88320. */
function crc32(text: string): number {
  let crc = 0xffffffff;
  for (const byte of Buffer.from(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
