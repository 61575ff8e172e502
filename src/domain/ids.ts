/** Kinds of public id: a prefix, an underscore, and 26 characters of Crockford's base 32. */
export type IdPrefix =
  | "cron"
  | "run"
  | "task"
  | "msg"
  | "sub"
  | "key"
  | "rdr"
  | "wh"
  | "dlv"
  | "rpl"
  | "bfl"
  | "ep"
  | "sigk"
  | "prj";

/** The UUID that nothing has. It lies before all others. */
export const NIL_UUID = "00000000-0000-0000-0000-000000000000";

const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const HEX_DIGITS = "0123456789abcdef";
/** The value of a character by its code; -1 for what stands for none. */
const VALUES = valuesOf(ALPHABET);
const HEX_VALUES = valuesOf(HEX_DIGITS);
const CODES = Buffer.from(ALPHABET, "latin1");
const HEX_CODES = Buffer.from(HEX_DIGITS, "latin1");
const HYPHEN = 0x2d;
const UNDERSCORE = 0x5f;
/** Room for a UUID, and for the longest prefix, an underscore and 26 characters. */
const scratch = Buffer.alloc(36);

function valuesOf(digits: string): Int8Array {
  const values = new Int8Array(128).fill(-1);
  for (const [value, digit] of Array.from(digits).entries()) {
    values[digit.charCodeAt(0)] = value;
    values[digit.toLowerCase().charCodeAt(0)] = value;
  }
  return values;
}

/**
 * The public form of a stored id: `cron_01HX…` for the prefix `cron` and a UUID, whose 128 bits are those of a ULID.
 *
 * The text is made in one piece: one that is put together character by character keeps all its parts in memory, which is
 * half a kilobyte for each id that is kept.
 */
export function formatId(prefix: IdPrefix, uuid: string): string {
  return scratch.toString("latin1", 0, writeId(scratch, 0, prefix, uuid));
}

/** Writes the public form of a stored id, which is `prefix.length + 27` bytes, and returns where it ends. */
export function writeId(bytes: Buffer, start: number, prefix: IdPrefix, uuid: string): number {
  let at = start + bytes.write(prefix, start, "latin1");
  bytes[at++] = UNDERSCORE;
  // 26 characters of 5 bits are 130 bits: the first two are zero.
  let pending = 0;
  let bits = 2;
  for (let i = 0; i < uuid.length; i++) {
    const digit = HEX_VALUES[uuid.charCodeAt(i)] ?? -1;
    if (digit < 0) continue;
    pending = ((pending << 4) | digit) & 0x1ff;
    bits += 4;
    if (bits < 5) continue;
    bits -= 5;
    bytes[at++] = CODES[(pending >> bits) & 31] ?? 0;
  }
  return at;
}

/**
 * The stored form of a public id, or undefined when `id` cannot be one of that kind. Letters of either case are
 * accepted. Callers answer undefined as they answer an id that does not exist.
 */
export function parseId(prefix: IdPrefix, id: string): string | undefined {
  const start = prefix.length + 1;
  if (id.length !== start + 26 || id[prefix.length] !== "_" || !id.startsWith(prefix)) return undefined;
  let pending = 0;
  // The first two of the 130 bits are to be zero, and have no place.
  let bits = -2;
  let length = 0;
  for (let i = start; i < id.length; i++) {
    const value = VALUES[id.charCodeAt(i)] ?? -1;
    if (value < 0 || (i === start && value > 7)) return undefined;
    pending = ((pending << 5) | value) & 0xff;
    for (bits += 5; bits >= 4; ) {
      bits -= 4;
      if (length === 8 || length === 13 || length === 18 || length === 23) scratch[length++] = HYPHEN;
      scratch[length++] = HEX_CODES[(pending >> bits) & 15] ?? 0;
    }
  }
  return scratch.toString("latin1", 0, length);
}
