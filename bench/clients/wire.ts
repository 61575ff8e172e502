/**
 * The binary form of what the load is made of, written and read as far as a client needs it. The clients share their
 * cores with what they measure, so they do not make objects that nobody looks at.
 */

/** What a consumer needs of a message that was handed out. They are parts of the answer. */
export interface HandedOut {
  readonly id: Buffer;
  readonly receipt: Buffer;
  readonly payload: Buffer;
}

/** A PublishBatchRequest. */
export function publishBatchRequest(queue: string, payloads: readonly string[]): Buffer {
  const sizes = payloads.map((payload) => Buffer.byteLength(payload));
  const messages = sizes.map((size) => fieldSize(size));
  const request = new Fields(fieldSize(queue.length) + messages.reduce((sum, size) => sum + fieldSize(size), 0));
  request.text(1, queue, queue.length);
  for (const [i, payload] of payloads.entries()) {
    request.head(2, messages[i] as number);
    request.text(1, payload, sizes[i] as number);
  }
  return request.bytes;
}

/** An AckBatchRequest for these. */
export function ackBatchRequest(queue: string, messages: readonly HandedOut[]): Buffer {
  const sizes = messages.map(({ id, receipt }) => fieldSize(id.length) + fieldSize(receipt.length));
  const request = new Fields(fieldSize(queue.length) + sizes.reduce((sum, size) => sum + fieldSize(size), 0));
  request.text(1, queue, queue.length);
  for (const [i, { id, receipt }] of messages.entries()) {
    request.head(2, sizes[i] as number);
    request.copy(1, id);
    request.copy(2, receipt);
  }
  return request.bytes;
}

/** How many of the acks of an AckBatchResponse took effect. */
export function countAcked(response: Buffer): number {
  let acked = 0;
  for (const [field, result] of fieldsOf(response)) {
    if (field !== 1 || typeof result === "number") continue;
    for (const [name, value] of fieldsOf(result)) if (name === 2 && value === 1) acked += 1;
  }
  return acked;
}

/** The messages of a ConsumeStreamResponse. */
export function handedOut(response: Buffer): HandedOut[] {
  const messages: HandedOut[] = [];
  for (const [field, bytes] of fieldsOf(response)) {
    if (field !== 1 || typeof bytes === "number") continue;
    const message = { id: NOTHING, receipt: NOTHING, payload: NOTHING };
    for (const [name, value] of fieldsOf(bytes)) {
      if (typeof value === "number") continue;
      if (name === 1) message.id = value;
      else if (name === 2) message.payload = value;
      else if (name === 10) message.receipt = value;
    }
    messages.push(message);
  }
  return messages;
}

const NOTHING: Buffer = Buffer.alloc(0);

/** The fields of a message: numbers as such, all others as bytes. No field of those above has a fixed width. */
function* fieldsOf(message: Buffer): Generator<readonly [field: number, value: Buffer | number]> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; ; factor *= 0x80) {
      const byte = message[at++] ?? 0;
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const value = varint();
    if ((tag & 7) === 0) yield [tag >> 3, value];
    else {
      yield [tag >> 3, message.subarray(at, at + value)];
      at += value;
    }
  }
}

/** Writes fields of bytes, with numbers below 16, into a message whose size is known. */
class Fields {
  readonly bytes: Buffer;
  #at = 0;

  constructor(size: number) {
    this.bytes = Buffer.allocUnsafe(size);
  }

  head(field: number, size: number): void {
    this.bytes[this.#at++] = (field << 3) | 2;
    let rest = size;
    for (; rest > 0x7f; rest >>>= 7) this.bytes[this.#at++] = (rest & 0x7f) | 0x80;
    this.bytes[this.#at++] = rest;
  }

  text(field: number, value: string, size: number): void {
    this.head(field, size);
    this.#at += this.bytes.write(value, this.#at);
  }

  copy(field: number, value: Buffer): void {
    this.head(field, value.length);
    this.bytes.set(value, this.#at);
    this.#at += value.length;
  }
}

/** Bytes of a field of so many bytes, with its tag and length. */
function fieldSize(size: number): number {
  let head = 2;
  for (let rest = size; rest > 0x7f; rest >>>= 7) head += 1;
  return head + size;
}
