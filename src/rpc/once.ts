import { createHash } from "node:crypto";
import {
  clone,
  create,
  type DescMessage,
  fromBinary,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type ReflectList, reflect } from "@bufbuild/protobuf/reflect";
import type { HandlerContext } from "@connectrpc/connect";
import type { Db } from "../db/schema.ts";
import type { Place } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import { claimKey, type IdempotencyClaim, storeReply } from "../store/idempotency.ts";
import { type AppContext, projectOf } from "./context.ts";

/**
 * Runs the effect of a write in one transaction, and at most once for an idempotency key: the claim on the key, the
 * effect and the stored answer commit together. A refusal rolls all three back, so the key stays free.
 *
 * The key comes in the request or in the header Idempotency-Key; its scope is project, method and `resource`, which is
 * what the REST path names (empty for none).
 *
 * @throws Refusal IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_KEY_IN_USE, or FIELD_INVALID when body and header disagree.
 */
export async function once<Response extends DescMessage>(
  app: AppContext,
  ctx: HandlerContext,
  response: Response,
  request: Message & { readonly idempotencyKey: string },
  resource: string,
  effect: (trx: Db) => Promise<MessageInitShape<Response>>,
): Promise<MessageInitShape<Response>> {
  const key = idempotencyKey(ctx, request.idempotencyKey);
  if (key === "") return app.db.transaction().execute(effect);

  const claim: IdempotencyClaim = {
    projectId: projectOf(ctx),
    operation: `${ctx.service.typeName}/${ctx.method.name}`,
    resource,
    key,
    fingerprint: fingerprint(ctx.method.input, request),
    ttlSeconds: app.limits.idempotencySeconds,
  };
  // An answer that shows a secret, which is marked so in the contract, is sealed while it is kept.
  const isSecret = showsSecret(response);
  const place: Place = [claim.projectId, "idempotency_keys", claim.operation, resource, key];
  return app.db.transaction().execute(async (trx) => {
    const outcome = await claimKey(trx, claim);
    if (outcome.kind === "reused") throw new Refusal("IDEMPOTENCY_KEY_REUSED");
    if (outcome.kind === "replay") {
      ctx.responseHeader.set("idempotency-replayed", "true");
      if (outcome.warning !== null) ctx.responseHeader.set("x-scheduling-warning", outcome.warning);
      const reply = isSecret ? app.vault.open(outcome.reply.toString(), place) : outcome.reply;
      return fromBinary(response, reply) as MessageInitShape<Response>;
    }
    const answer = create(response, await effect(trx));
    const reply = toBinary(response, answer);
    await storeReply(trx, claim, {
      reply: Buffer.from(isSecret ? app.vault.seal(reply, place) : reply),
      warning: ctx.responseHeader.get("x-scheduling-warning"),
    });
    return answer as MessageInitShape<Response>;
  });
}

/** The key of a call, from the request or the header; empty for none. @throws Refusal FIELD_INVALID */
export function idempotencyKey(ctx: HandlerContext, inBody: string): string {
  const inHeader = ctx.requestHeader.get("idempotency-key") ?? "";
  if (inHeader !== "" && inBody !== "" && inHeader !== inBody) {
    throw Refusal.field("idempotency_key", "must equal the header Idempotency-Key when both are given");
  }
  if (!/^[\x20-\x7e]{0,255}$/.test(inHeader)) {
    throw Refusal.field("idempotency_key", "must be 1 to 255 printable ASCII characters");
  }
  return inBody || inHeader;
}

/** Whether the answer to the call is one that an earlier call was given. */
export function isReplay(ctx: HandlerContext): boolean {
  return ctx.responseHeader.has("idempotency-replayed");
}

/** Whether a field of the message, or of one in it, is marked `debug_redact`. Such answers are not nested deeper. */
function showsSecret(message: DescMessage, depth = 1): boolean {
  return message.fields.some(
    (field) =>
      field.proto.options?.debugRedact ||
      (depth > 0 && field.fieldKind === "message" && showsSecret(field.message, depth - 1)),
  );
}

/** Hash of a request without its idempotency key; equal for equal requests whatever the order of their map entries. */
function fingerprint(schema: DescMessage, request: Message): Buffer {
  const copy = clone(schema, request);
  const message = reflect(schema, copy);
  for (const field of schema.fields) {
    if (field.name === "idempotency_key") message.clear(field);
    if (field.fieldKind === "map") sortMap(copy, field.localName);
    if (field.fieldKind === "list" && field.listKind === "message") sortMapsOf(message.get(field) as ReflectList);
  }
  return createHash("sha256")
    .update(toBinary(schema, copy, { writeUnknownFields: false }))
    .digest();
}

function sortMapsOf(list: ReflectList): void {
  for (const item of list) {
    const { desc, message } = item as ReturnType<typeof reflect>;
    for (const field of desc.fields) if (field.fieldKind === "map") sortMap(message, field.localName);
  }
}

function sortMap(message: Message, name: string): void {
  const fields = message as unknown as Record<string, Record<string, unknown>>;
  fields[name] = Object.fromEntries(Object.entries(fields[name] ?? {}).sort(([a], [b]) => (a < b ? -1 : 1)));
}
