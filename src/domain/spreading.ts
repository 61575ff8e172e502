import { createHash } from "node:crypto";

/** How fires are spread over time, so that jobs with the same expression do not all start at once. */
export interface Spreading {
  /** Each job has its own place in a window of this length after its fire times, always the same; 0 for none. */
  readonly spreadSeconds: number;
  /** Each fire is later by up to this, differently each time; 0 for none. */
  readonly jitterSeconds: number;
}

/**
 * The instant at which a fire is due to start, its effective time: `fireAt` and the delay of the spreading, but always
 * before the next fire time. It follows from the job and the fire alone, so that it is known beforehand.
 *
 * @param seed the job's id.
 * @param nextFireAt the fire time after `fireAt`, undefined when there is none.
 */
export function effectiveAt(spreading: Spreading, seed: string, fireAt: Date, nextFireAt: Date | undefined): Date {
  const { spreadSeconds, jitterSeconds } = spreading;
  if (spreadSeconds === 0 && jitterSeconds === 0) return fireAt;
  const delayMs =
    share(`${seed}:spread`) * spreadSeconds * 1000 + share(`${seed}:${fireAt.getTime()}`) * jitterSeconds * 1000;
  const room = nextFireAt === undefined ? delayMs : nextFireAt.getTime() - fireAt.getTime() - 1;
  return new Date(fireAt.getTime() + Math.floor(Math.min(delayMs, room)));
}

/** A number from 0 up to 1 that is drawn from `text`. */
function share(text: string): number {
  return createHash("sha256").update(text).digest().readUInt32BE(0) / 2 ** 32;
}
