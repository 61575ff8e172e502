import { nextFireAt, type Schedule } from "./schedule.ts";
import { effectiveAt, type Spreading } from "./spreading.ts";

/** Most fire times that a herd is counted from. */
const MAX_HERD_FIRES = 100_000;
const FIRES_A_TURN = 1000;
const MAX_PEAKS = 10;

/** Cron jobs that fire alike. */
interface HerdMember {
  readonly schedule: Schedule;
  readonly spreading: Spreading;
  /** What the spreading is drawn for. */
  readonly seed: string;
  /** How many jobs there are of these. */
  readonly jobs: number;
}

/** Counts how many fires of many cron jobs start when, in buckets and by the second. The work is bounded. */
export class Herd {
  readonly #fromMs: number;
  readonly #untilMs: number;
  readonly #bucketMs: number;
  readonly #counts: number[];
  readonly #bySecond = new Map<number, number>();
  #left = MAX_HERD_FIRES;

  /** Counts what starts after `from` and before `until`. The first bucket begins at a whole multiple of its length. */
  constructor(from: Date, until: Date, bucketSeconds: number) {
    this.#bucketMs = bucketSeconds * 1000;
    this.#fromMs = from.getTime();
    this.#untilMs = until.getTime();
    const buckets = Math.ceil((this.#untilMs - this.#startMs) / this.#bucketMs);
    this.#counts = new Array<number>(buckets).fill(0);
  }

  get #startMs(): number {
    return Math.floor(this.#fromMs / this.#bucketMs) * this.#bucketMs;
  }

  /** Whether the bound of fire times was met, so that the counts are less than what is. */
  get isTruncated(): boolean {
    return this.#left <= 0;
  }

  /** Counts the fires of one kind of job, and yields every so often, so that the caller may do something else. */
  *counting({ schedule, spreading, seed, jobs }: HerdMember): Generator<undefined, void> {
    let fireAt = nextFireAt(schedule, new Date(this.#fromMs));
    while (fireAt !== undefined && fireAt.getTime() < this.#untilMs && this.#left > 0) {
      if (this.#left-- % FIRES_A_TURN === 0) yield;
      const next = nextFireAt(schedule, fireAt);
      this.#count(effectiveAt(spreading, seed, fireAt, next).getTime(), jobs);
      fireAt = next;
    }
  }

  #count(atMs: number, jobs: number): void {
    if (atMs >= this.#untilMs) return;
    const bucket = Math.floor((atMs - this.#startMs) / this.#bucketMs);
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + jobs;
    const second = Math.floor(atMs / 1000);
    this.#bySecond.set(second, (this.#bySecond.get(second) ?? 0) + jobs);
  }

  /** The counts of all buckets, in order of time. */
  get buckets(): readonly { readonly startsAt: Date; readonly fires: number }[] {
    return this.#counts.map((fires, index) => ({
      startsAt: new Date(this.#startMs + index * this.#bucketMs),
      fires,
    }));
  }

  /** The seconds with most fires, at most 10, those with a single one left out. */
  get peaks(): readonly { readonly at: Date; readonly fires: number }[] {
    return [...this.#bySecond]
      .filter(([, fires]) => fires > 1)
      .sort(([a, aFires], [b, bFires]) => bFires - aFires || a - b)
      .slice(0, MAX_PEAKS)
      .map(([second, fires]) => ({ at: new Date(second * 1000), fires }));
  }
}
