import { Pool } from "undici";
import { SCHEDULED_AT } from "../servers/receiver.ts";

/** A scheduler under test, with the settings that make it as prompt as it can be. Disposing it stops it. */
export interface CronContestant extends AsyncDisposable {
  readonly name: string;
  /** Schedules so many jobs that POST to `url` at the instant `at`, a full minute. Disposing the result takes them back. */
  schedule(jobs: number, at: Date, url: string): Promise<ScheduledJobs>;
  /** The same for every second of [from, to). Undefined where minutes are the least that it knows. */
  readonly scheduleEverySecond?: (jobs: number, from: Date, to: Date, url: string) => Promise<AsyncDisposable>;
}

export interface ScheduledJobs extends AsyncDisposable {
  /** How many of their fires are stored by now. Undefined where none ever is. */
  readonly recorded?: () => Promise<number>;
}

/** Connections of a contestant that leaves the POSTs to its user: as many requests as a Carillon node has under way. */
const WIDTH = 64;

/** POSTs as a program does that sends by itself: connections that are kept, one request on each at a time. */
export class Sender implements AsyncDisposable {
  readonly #pool: Pool;
  readonly #path: string;

  constructor(url: string) {
    const target = new URL(url);
    this.#pool = new Pool(target.origin, { connections: WIDTH, pipelining: 1 });
    this.#path = target.pathname;
  }

  /** Rejects never: what does not arrive is missed at the receiver. */
  async post(scheduledAt: Date): Promise<void> {
    const headers = { "content-type": "application/json", [SCHEDULED_AT]: scheduledAt.toISOString() };
    try {
      const response = await this.#pool.request({ path: this.#path, method: "POST", headers, body: "{}" });
      await response.body.dump();
    } catch (error) {
      process.stderr.write(`${error}\n`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.close();
  }
}
