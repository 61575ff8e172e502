/**
 * Ids of messages that stand in a line: the number of the lane and the message's number in it, as one uuid, so that the
 * message is found without an index on ids. Receipts are made alike, of a claim's token and the message's number.
 *
 * Other message ids begin with the milliseconds of their creation, whose first 16 bits are not zero since 1970; numbers
 * of lanes stay below 2^48. So neither can be taken for the other. A message's number stays below 2^53.
 */

/** Where the second half begins in the text of a uuid, after the hyphen. */
const LOW_HALF = 19;

/** What the uuids of one lane, or of the receipts of one claim, begin with: `number` is its own, of 64 bits with a sign. */
export function firstHalf(number: bigint): string {
  const hex = BigInt.asUintN(64, number).toString(16).padStart(16, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12)}-`;
}

/** The uuid of a first half and a message's number. */
export function lineUuid(half: string, seq: number): string {
  const hex = seq.toString(16).padStart(16, "0");
  return `${half}${hex.slice(0, 4)}-${hex.slice(4)}`;
}

/** A message's number in the lane `laneId`, or undefined when the id is of another lane or of none. */
export function seqInLane(laneId: string, messageId: string): number | undefined {
  return laneOf(messageId) === laneId ? seqOf(messageId) : undefined;
}

/** The message's number in an id or a receipt of a line, or undefined where there can be no such number. */
function seqOf(uuid: string): number | undefined {
  const seq = Number.parseInt(uuid.slice(LOW_HALF, LOW_HALF + 4) + uuid.slice(LOW_HALF + 5), 16);
  return seq > 0 && Number.isSafeInteger(seq) ? seq : undefined;
}

/** The number of the lane that a message id names, or undefined for an id of another kind. */
export function laneOf(messageId: string): string | undefined {
  if (!messageId.startsWith("0000")) return undefined;
  const lane = Number.parseInt(messageId.slice(4, 8) + messageId.slice(9, 13) + messageId.slice(14, 18), 16);
  return lane > 0 && seqOf(messageId) !== undefined ? `${lane}` : undefined;
}

/** The token of the claim that a receipt is of. */
export function tokenOf(receipt: string): bigint {
  return BigInt.asIntN(64, BigInt(`0x${receipt.slice(0, 8)}${receipt.slice(9, 13)}${receipt.slice(14, 18)}`));
}

/** Whether a receipt is of a hand-out of this message, where both are of a line. */
export function isReceiptFor(messageId: string, receipt: string): boolean {
  return receipt.slice(LOW_HALF) === messageId.slice(LOW_HALF);
}

/** Whether two receipts, or the ids of two messages, are of the same claim or the same lane. */
export function areOfSame(uuid: string, other: string): boolean {
  return uuid.slice(0, LOW_HALF) === other.slice(0, LOW_HALF);
}
