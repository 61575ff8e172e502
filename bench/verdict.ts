import { type Measures, median } from "./measure.ts";

/** The measures of each contestant, by its name, a round each. */
export type Rounds = Readonly<Record<string, readonly Measures[]>>;

/** A goal, and how near the rounds came to it. */
export interface Verdict {
  readonly goal: number;
  readonly what: string;
  readonly unit: string;
  /** The median has to be at least, or at most, this. */
  readonly bound: { readonly atLeast: number } | { readonly atMost: number };
  /** One a round. Empty where a contestant is missing. */
  readonly values: readonly number[];
}

export function isMet({ values, bound }: Verdict): boolean {
  const middle = median(values);
  return "atLeast" in bound ? middle >= bound.atLeast : middle <= bound.atMost;
}

/** One contestant's figure through another's, round by round. Empty where one of them did not run. */
export function ratios(rounds: Rounds, contestant: string, peer: string, figure = "per_s"): number[] {
  const theirs = rounds[peer] ?? [];
  return (rounds[contestant] ?? []).flatMap((ours, round) => {
    const ratio = (ours[figure] ?? Number.NaN) / (theirs[round]?.[figure] ?? Number.NaN);
    return Number.isFinite(ratio) ? [ratio] : [];
  });
}

/** One contestant's figure, round by round. */
export function figures(rounds: Rounds, contestant: string, figure: string): number[] {
  return (rounds[contestant] ?? []).flatMap((measures) => measures[figure] ?? []);
}
