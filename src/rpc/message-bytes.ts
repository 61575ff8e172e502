import { create, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import {
  type ConsumeSessionResponseSchema,
  type ConsumeStreamResponseSchema,
  QueueMessageSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { writeId } from "../domain/ids.ts";
import type { MessageRow } from "../store/messages.ts";
import { toMessage, toMessages } from "./convert-queue.ts";

/** An answer that has messages in its field `messages`, and is otherwise empty. */
type MessagesSchema = typeof ConsumeStreamResponseSchema | typeof ConsumeSessionResponseSchema;

/**
 * The answer that hands out these messages.
 *
 * Where the call takes the binary form, messages are encoded here and put where protobuf-es keeps fields that it does not
 * know, which it writes as they are. That takes a tenth of the time of making a message of each for it to encode.
 */
export function toAnswer<Schema extends MessagesSchema>(
  schema: Schema,
  ctx: Pick<HandlerContext, "requestHeader">,
  rows: readonly MessageRow[],
): MessageShape<Schema> {
  const isJson = /json/i.test(ctx.requestHeader.get("content-type") ?? "");
  if (isJson) return create<MessagesSchema>(schema, { messages: toMessages(rows) }) as MessageShape<Schema>;
  const answer = create<MessagesSchema>(schema);
  if (rows.length > 0) {
    // The writer puts the first tag itself.
    answer.$unknown = [{ no: MESSAGES, wireType: BYTES, data: encodeMessages(rows).subarray(1) }];
  }
  return answer as MessageShape<Schema>;
}

/** The field `messages` of these answers. */
const MESSAGES = 1;
/** The wire type of strings, bytes and messages. */
const BYTES = 2;

const tagOf = (field: number): number => (field << 3) | BYTES;
const ID_TAG = tagOf(QueueMessageSchema.field.messageId.number);
const PAYLOAD_TAG = tagOf(QueueMessageSchema.field.payload.number);
const RECEIPT_TAG = tagOf(QueueMessageSchema.field.receipt.number);
const ID_LENGTH = 30;
const UUID_LENGTH = 36;
const NOTHING = Buffer.alloc(0);
/** Of an id and a receipt with their tags and lengths. */
const ID_BYTES = 2 + ID_LENGTH;
const RECEIPT_BYTES = 2 + UUID_LENGTH;

/** The field `messages`, number 1, with these. */
function encodeMessages(rows: readonly MessageRow[]): Buffer {
  let common: Uint8Array | undefined;
  const parts = rows.map((row, i) => {
    const before = rows[i - 1];
    if (common === undefined || before === undefined || !isAlike(row, before)) common = encodeCommon(row);
    return common;
  });
  const sizes = rows.map(({ payload, lease_token }, i) => {
    const payloadBytes = payload.length === 0 ? 0 : 1 + varintSize(payload.length) + payload.length;
    return ID_BYTES + payloadBytes + (lease_token === null ? 0 : RECEIPT_BYTES) + (parts[i] as Uint8Array).length;
  });
  const bytes = Buffer.allocUnsafe(sizes.reduce((sum, size) => sum + 1 + varintSize(size) + size, 0));
  let at = 0;
  for (const [i, { message_id, payload, lease_token }] of rows.entries()) {
    at = writeHead(bytes, at, tagOf(MESSAGES), sizes[i] as number);
    at = writeId(bytes, writeHead(bytes, at, ID_TAG, ID_LENGTH), "msg", message_id);
    if (payload.length > 0) {
      at = writeHead(bytes, at, PAYLOAD_TAG, payload.length);
      bytes.set(payload, at);
      at += payload.length;
    }
    if (lease_token !== null) {
      at = writeHead(bytes, at, RECEIPT_TAG, UUID_LENGTH);
      at += bytes.write(lease_token, at, "latin1");
    }
    bytes.set(parts[i] as Uint8Array, at);
    at += (parts[i] as Uint8Array).length;
  }
  return bytes;
}

/** All of a message but what is its own: id, payload and receipt. Fields may come in any order. */
function encodeCommon(row: MessageRow): Uint8Array {
  const message = create(QueueMessageSchema, toMessage({ ...row, payload: NOTHING, lease_token: null }));
  message.messageId = "";
  return toBinary(QueueMessageSchema, message);
}

/** Whether messages have all in common but what is their own. Messages of one claim share their objects. */
function isAlike(row: MessageRow, other: MessageRow): boolean {
  return (
    row.lease_expires_at === other.lease_expires_at &&
    row.published_at === other.published_at &&
    row.visible_at === other.visible_at &&
    row.headers === other.headers &&
    row.content_type === other.content_type &&
    row.group_id === other.group_id &&
    row.priority === other.priority &&
    row.receive_count === other.receive_count &&
    row.failure_count === other.failure_count &&
    row.return_count === other.return_count &&
    row.expiry_count === other.expiry_count &&
    row.error === other.error &&
    row.dead_reason === other.dead_reason &&
    row.dead_lettered_at === other.dead_lettered_at &&
    row.source_queue === other.source_queue
  );
}

function varintSize(value: number): number {
  let size = 1;
  for (let rest = value; rest > 0x7f; rest >>>= 7) size += 1;
  return size;
}

/** Writes the tag of a field and its length, and returns where they end. */
function writeHead(bytes: Buffer, start: number, tag: number, length: number): number {
  let at = start;
  bytes[at++] = tag;
  let rest = length;
  for (; rest > 0x7f; rest >>>= 7) bytes[at++] = (rest & 0x7f) | 0x80;
  bytes[at++] = rest;
  return at;
}
