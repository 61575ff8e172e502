/** Kinds of public id: a prefix, an underscore, and 26 characters of Crockford's base 32. */
export type IdPrefix = "cron" | "run" | "task" | "msg" | "sub" | "key";

const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** The public form of a stored id: `cron_01HX…` for the prefix `cron` and a UUID, whose 128 bits are those of a ULID. */
export function formatId(prefix: IdPrefix, uuid: string): string {
  let bits = BigInt(`0x${uuid.replaceAll("-", "")}`);
  let text = "";
  for (let i = 0; i < 26; i++) {
    text = ALPHABET[Number(bits & 31n)] + text;
    bits >>= 5n;
  }
  return `${prefix}_${text}`;
}

/**
 * The stored form of a public id, or undefined when `id` cannot be one of that kind. Letters of either case are
 * accepted. Callers answer undefined as they answer an id that does not exist.
 */
export function parseId(prefix: IdPrefix, id: string): string | undefined {
  const body = id.slice(prefix.length + 1).toUpperCase();
  if (!id.startsWith(`${prefix}_`) || body.length !== 26) return undefined;
  let bits = 0n;
  for (const character of body) {
    const value = ALPHABET.indexOf(character);
    if (value < 0) return undefined;
    bits = (bits << 5n) | BigInt(value);
  }
  if (bits >> 128n !== 0n) return undefined;
  const hex = bits.toString(16).padStart(32, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
