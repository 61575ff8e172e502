import { randomInt } from "node:crypto";

/**
 * Numbers from 0 up to 1 that follow from a seed, which is printed. CARILLON_TEST_SEED repeats a run.
 * The generator is splitmix32.
 */
export function seededRandom(test: string): () => number {
  const seed = Number(process.env["CARILLON_TEST_SEED"] ?? randomInt(2 ** 31));
  console.log(`${test}: CARILLON_TEST_SEED=${seed}`);
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = state ^ (state >>> 16);
    mixed = Math.imul(mixed, 0x21f0aaad);
    mixed ^= mixed >>> 15;
    mixed = Math.imul(mixed, 0x735a2d97);
    mixed ^= mixed >>> 15;
    return (mixed >>> 0) / 2 ** 32;
  };
}
