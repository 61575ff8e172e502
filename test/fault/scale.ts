/** CARILLON_TEST_FULL=1 runs the fault tests at the size of their promises, which takes many minutes. */
const isFull = process.env["CARILLON_TEST_FULL"] === "1";

/** A figure for a run at full size, and the one for every other run. */
export function sized(full: number, otherwise: number): number {
  return isFull ? full : otherwise;
}
