import { createHash } from "node:crypto";
import { isJsonType, JSON_TYPE } from "./content-type.ts";
import { formatId } from "./ids.ts";
import { saidBy, splitHeaders } from "./own-headers.ts";

/** What a subscription says about its requests. */
export interface PushForm {
  readonly subscription_id: string;
  /** Name of the queue. */
  readonly queue: string;
  /** Null: raw, or wrapped where batch_size is above 1. */
  readonly body: "raw" | "wrapped" | null;
  readonly batch_size: number;
  /** Sent along with every request; a message's own header of the same name goes before. */
  readonly headers: Readonly<Record<string, string>>;
}

/** What a request says about a message. */
export interface PushedMessage {
  readonly message_id: string;
  readonly payload: Uint8Array;
  readonly content_type: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Empty: none. */
  readonly group_id: string;
  readonly published_at: Date;
  readonly run_id: string;
  /** Number of the attempt; the first is 1. */
  readonly attempt: number;
}

/** The parts of a request that depend on what is pushed. */
export interface PushRequest {
  /** `webhook-id`. The same for every attempt: the message's id, or one made from the ids of all. */
  readonly id: string;
  readonly body: Uint8Array;
  readonly contentType: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Sent as headers whose names begin with `carillon-`. */
  readonly about: Readonly<Record<string, string>>;
}

/** Whether a subscription's requests carry envelopes. */
export function isWrapped({ body, batch_size }: Pick<PushForm, "body" | "batch_size">): boolean {
  return (body ?? (batch_size > 1 ? "wrapped" : "raw")) === "wrapped";
}

/** The request that pushes these messages, in their order; more than one only where the form has a batch_size above 1. */
export function pushRequest(form: PushForm, messages: readonly PushedMessage[]): PushRequest {
  const [message] = messages;
  if (message === undefined) throw new RangeError("a push without a message");
  const subscription = { queue: form.queue, "subscription-id": formatId("sub", form.subscription_id) };
  if (form.batch_size > 1) {
    return {
      id: batchId(messages),
      body: Buffer.concat([
        Buffer.from('{"messages":['),
        ...messages.flatMap((each, i) =>
          i === 0 ? envelope(form, each) : [Buffer.from(","), ...envelope(form, each)],
        ),
        Buffer.from("]}"),
      ]),
      contentType: JSON_TYPE,
      headers: form.headers,
      about: { ...subscription, "batch-size": `${messages.length}` },
    };
  }
  const about = {
    ...subscription,
    "message-id": formatId("msg", message.message_id),
    "run-id": formatId("run", message.run_id),
    attempt: `${message.attempt}`,
    "published-at": message.published_at.toISOString(),
    ...(message.group_id !== "" && /^[\x20-\x7e]*$/.test(message.group_id) && { "group-id": message.group_id }),
  };
  const id = formatId("msg", message.message_id);
  if (!isWrapped(form)) {
    const { own, given } = splitHeaders(message.headers);
    const headers = { ...form.headers, ...given };
    return {
      id,
      body: message.payload,
      contentType: message.content_type,
      headers,
      about: { ...saidBy(own), ...about },
    };
  }
  return { id, body: Buffer.concat(envelope(form, message)), contentType: JSON_TYPE, headers: form.headers, about };
}

/** The pieces of a message's envelope. A payload that is JSON goes in byte for byte. */
function envelope(form: PushForm, message: PushedMessage): Uint8Array[] {
  const about = JSON.stringify({
    message_id: formatId("msg", message.message_id),
    queue: form.queue,
    subscription_id: formatId("sub", form.subscription_id),
    attempt: message.attempt,
    published_at: message.published_at.toISOString(),
    ...(message.group_id !== "" && { group_id: message.group_id }),
    headers: message.headers,
    content_type: message.content_type,
  }).slice(0, -1);
  return isJson(message)
    ? [Buffer.from(`${about},"payload":`), message.payload, Buffer.from("}")]
    : [Buffer.from(`${about},"payload_base64":"${Buffer.from(message.payload).toString("base64")}"}`)];
}

/** Whether the payload is what its content type says: a program that publishes by SQL may have stored anything. */
function isJson({ payload, content_type }: PushedMessage): boolean {
  if (!isJsonType(content_type)) return false;
  try {
    JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(payload));
    return true;
  } catch {
    return false;
  }
}

/** The same for the same messages in whatever order, so that a receiver knows a batch that comes again. */
function batchId(messages: readonly PushedMessage[]): string {
  const ids = messages
    .map((message) => message.message_id)
    .toSorted()
    .join(",");
  return `batch_${createHash("sha256").update(ids).digest("hex").slice(0, 32)}`;
}
