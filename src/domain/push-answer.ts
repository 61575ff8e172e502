import { formatId } from "./ids.ts";

/** A message of a batch that the receiver did not take, in its own words. */
export type BatchFailures = ReadonlyMap<string, string>;

/** Longest text of a receiver's error that is kept, in characters. */
const MAX_ERROR = 200;

/**
 * Which messages of a batch a 2xx says have failed, by their ids as stored: `{"failed": [{"message_id", "error"}]}`.
 * None where the answer's body is anything else: a 2xx acks. What it names that is not in the batch is ignored.
 */
export function failedInBatch(answer: Uint8Array, messages: readonly { readonly message_id: string }[]): BatchFailures {
  const failures = new Map<string, string>();
  if (answer.length === 0) return failures;
  const byPublicId = new Map(messages.map(({ message_id }) => [formatId("msg", message_id), message_id]));
  for (const item of failedItems(answer)) {
    const { message_id: publicId, error } = (item ?? {}) as { message_id?: unknown; error?: unknown };
    const id = typeof publicId === "string" ? byPublicId.get(publicId) : undefined;
    if (id === undefined) continue;
    failures.set(id, typeof error === "string" && error !== "" ? error.slice(0, MAX_ERROR) : "the receiver refused it");
  }
  return failures;
}

function failedItems(answer: Uint8Array): readonly unknown[] {
  try {
    const { failed } = (JSON.parse(Buffer.from(answer).toString()) ?? {}) as { failed?: unknown };
    return Array.isArray(failed) ? failed : [];
  } catch {
    return [];
  }
}
