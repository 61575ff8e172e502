import { loadPeer } from "../peers.ts";
import { type CronContestant, Sender } from "./cron-contestant.ts";

interface Croner {
  Cron: new (pattern: string, options: object, fire: () => void) => { stop(): void };
}

/** Timers in a process, without a database: what a fire takes at least, and what nobody remembers. */
export async function openCroner(): Promise<CronContestant> {
  const { Cron } = await loadPeer<Croner>("croner");
  const start = (pattern: string, options: object, jobs: number, url: string, stepMs: number) => {
    const sender = new Sender(url);
    const fire = () => void sender.post(new Date(Math.floor(Date.now() / stepMs) * stepMs));
    const timers = Array.from({ length: jobs }, () => new Cron(pattern, options, fire));
    return {
      async [Symbol.asyncDispose]() {
        for (const timer of timers) timer.stop();
        await sender[Symbol.asyncDispose]();
      },
    };
  };
  return {
    name: "croner",
    schedule: async (jobs, _at, url) => start("* * * * *", {}, jobs, url, 60_000),
    scheduleEverySecond: async (jobs, from, to, url) =>
      start("* * * * * *", { startAt: from.toISOString(), stopAt: to.toISOString() }, jobs, url, 1_000),
    async [Symbol.asyncDispose]() {},
  };
}
