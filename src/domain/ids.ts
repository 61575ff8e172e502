/** Kinds of public id: a prefix, an underscore, and 26 characters of Crockford's base 32. */
export type IdPrefix = "cron" | "run" | "task" | "msg" | "sub" | "key" | "rdr";

/** The UUID that nothing has. It lies before all others. */
export const NIL_UUID = "00000000-0000-0000-0000-000000000000";

const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CODES = Buffer.from(ALPHABET, "latin1");
/** The longest prefix, the underscore and the characters. */
const scratch = Buffer.alloc(4 + 1 + 26);

/**
 * The public form of a stored id: `cron_01HX…` for the prefix `cron` and a UUID, whose 128 bits are those of a ULID.
 *
 * The text is made in one piece: one that is put together character by character keeps all its parts in memory, which is
 * half a kilobyte for each id that is kept.
 */
export function formatId(prefix: IdPrefix, uuid: string): string {
  const bytes = Buffer.from(uuid.replaceAll("-", ""), "hex");
  let length = scratch.write(`${prefix}_`, "latin1");
  // 26 characters of 5 bits are 130 bits: the first two are zero.
  let pending = 0;
  let bits = 2;
  for (const byte of bytes) {
    pending = (pending << 8) | byte;
    for (bits += 8; bits >= 5; length++) {
      bits -= 5;
      scratch[length] = CODES[(pending >> bits) & 31] ?? 0;
    }
    pending &= (1 << bits) - 1;
  }
  return scratch.toString("latin1", 0, length);
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
  return hexToUuid(bits.toString(16).padStart(32, "0"));
}

/** The UUID of 32 hexadecimal digits. */
export function hexToUuid(hex: string): string {
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
