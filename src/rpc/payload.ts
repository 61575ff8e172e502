import { isUtf8 } from "node:buffer";
import { isJsonType } from "../domain/content-type.ts";
import { Refusal } from "../errors.ts";
import type { ApiLimits } from "./context.ts";

/** How deep JSON may nest. Far beyond what people write, and far from where parsers of receivers overflow. */
const MAX_JSON_DEPTH = 64;

/**
 * Checks a payload once, at the door: its size, and where its content type says JSON that it is JSON of bounded depth.
 * Later it is only stored, signed and sent.
 *
 * @throws Refusal PAYLOAD_TOO_LARGE, FIELD_INVALID
 */
export function checkPayload(limits: ApiLimits, field: string, payload: Uint8Array, contentType: string): void {
  if (payload.length > limits.maxPayloadBytes) {
    throw new Refusal("PAYLOAD_TOO_LARGE", { field, size: `${payload.length}`, limit: `${limits.maxPayloadBytes}` });
  }
  if (!isJsonType(contentType)) return;
  if (!isUtf8(payload)) throw Refusal.field(field, "must be JSON in UTF-8");
  if (brackets(payload) > MAX_JSON_DEPTH && jsonDepth(payload) > MAX_JSON_DEPTH)
    throw Refusal.field(field, `must not nest deeper than ${MAX_JSON_DEPTH} levels`);
  try {
    JSON.parse(Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).toString());
  } catch {
    throw Refusal.field(field, "must be JSON, or content_type must say what else it is");
  }
}

/** How many brackets open, in strings as well. It is cheap to count, and most payloads have too few to nest deep. */
function brackets(bytes: Uint8Array): number {
  let count = 0;
  // [ and { differ in one bit, and no other byte has the rest.
  for (let i = 0; i < bytes.length; i++) if (((bytes[i] as number) | 0x20) === 0x7b) count += 1;
  return count;
}

/** The deepest nesting of brackets outside strings. Counted before parsing, because a parser recurses. */
function jsonDepth(bytes: Uint8Array): number {
  let depth = 0;
  let deepest = 0;
  let inString = false;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i];
    if (inString) {
      if (byte === 0x5c) i++;
      else if (byte === 0x22) inString = false;
    } else if (byte === 0x22) inString = true;
    else if (byte === 0x5b || byte === 0x7b) deepest = Math.max(deepest, ++depth);
    else if (byte === 0x5d || byte === 0x7d) depth--;
  }
  return deepest;
}
