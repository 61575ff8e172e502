import type { DuePlace, DueQuery, DueRuns } from "../store/runs-due.ts";

/**
 * While the first runs fill a window, one look of so many goes beyond them. When it has found something for which there was
 * room, so many in a row go to the same place.
 */
const FAR_EVERY = 8;
/** Runs that such a look reads. */
const FAR_READS = 2_000;

/** How far the looks of a node beyond the first due runs have come. */
export class Horizon {
  #place: DuePlace | undefined;
  #looks = 0;
  /** For how many looks it stays where it is. */
  #patience = 0;

  /** Counts a look, and says what it is to read beyond the first runs; undefined for nothing. */
  ahead(): DueQuery["beyond"] {
    const isFar = this.#looks++ % FAR_EVERY === 0 || this.#patience > 0;
    return isFar && this.#place !== undefined ? { after: this.#place, reads: FAR_READS } : undefined;
  }

  /**
   * Takes note of a look.
   *
   * @param wentBeyond whether it read beyond the first runs.
   * @param hasTaken whether there was room for some of what it found there, and there may be more of its kind beside it, for which
   *   its endpoint has room only later.
   */
  note({ more, next }: Pick<DueRuns, "more" | "next">, wentBeyond: boolean, hasTaken: boolean): void {
    this.#patience = hasTaken ? FAR_EVERY : Math.max(0, this.#patience - 1);
    if (!more) this.#place = undefined;
    else if (this.#place === undefined || (wentBeyond && this.#patience === 0)) this.#place = next;
  }
}
