import { hexToUuid } from "./ids.ts";

/**
 * Ids of messages that stand in a line: the number of the lane and the message's number in it, as one uuid, so that the
 * message is found without an index on ids. Receipts are made alike, of a claim's token and the message's number.
 *
 * Other message ids begin with the milliseconds of their creation, whose first 16 bits are not zero since 1970; numbers
 * of lanes stay below 2^48. So neither can be taken for the other.
 */
export function pairToUuid(high: bigint, low: bigint): string {
  const half = (number: bigint) => BigInt.asUintN(64, number).toString(16).padStart(16, "0");
  return hexToUuid(half(high) + half(low));
}

/** Where the second half begins in the text of a uuid. */
const LOW_HALF = 19;

/** The two halves of a uuid, as signed 64-bit numbers. */
export function uuidToPair(uuid: string): { readonly high: bigint; readonly low: bigint } {
  const hex = uuid.replaceAll("-", "");
  return {
    high: BigInt.asIntN(64, BigInt(`0x${hex.slice(0, 16)}`)),
    low: BigInt.asIntN(64, BigInt(`0x${hex.slice(16)}`)),
  };
}

/** A message's number in the lane `laneId`, or undefined when the id is of another lane or of none. */
export function seqInLane(laneId: string, messageId: string): bigint | undefined {
  if (!messageId.startsWith("0000")) return undefined;
  const { high, low } = uuidToPair(messageId);
  return high === BigInt(laneId) && low > 0n ? low : undefined;
}

/** The number of the lane that a message id names, or undefined for an id of another kind. */
export function laneOf(messageId: string): string | undefined {
  if (!messageId.startsWith("0000")) return undefined;
  const { high, low } = uuidToPair(messageId);
  return high > 0n && low > 0n ? `${high}` : undefined;
}

/** Whether a receipt is of a hand-out of this message, where both are of a line. */
export function isReceiptFor(messageId: string, receipt: string): boolean {
  return receipt.slice(LOW_HALF) === messageId.slice(LOW_HALF);
}
