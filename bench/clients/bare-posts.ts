import { Pool } from "undici";
import { parseSigningKey, sign } from "../../src/webhook/sign.ts";

/** Connections of the loop: more of them make it no faster. */
const WIDTH = 50;

/**
 * What a delivery costs without a service: undici in a loop, the same bodies and signatures, nothing recorded. Resolves
 * with the time of each request, in milliseconds, and how long all of them took.
 */
export async function barePosts(
  url: string,
  count: number,
  secret: string,
): Promise<{ readonly times: number[]; readonly seconds: number }> {
  const target = new URL(url);
  const pool = new Pool(target.origin, { connections: WIDTH, pipelining: 1 });
  const body = Buffer.from("{}");
  const keys = [parseSigningKey("v1", secret)];
  const times: number[] = [];
  let next = 0;
  const loop = async (): Promise<void> => {
    for (let turn = next++; turn < count; turn = next++) {
      const startedAt = performance.now();
      const headers = {
        "content-type": "application/json",
        ...sign({ id: `run_${turn}`, timestampSeconds: Math.floor(Date.now() / 1_000), body, keys }),
      };
      const response = await pool.request({ path: target.pathname, method: "POST", headers, body });
      await response.body.dump();
      times.push(performance.now() - startedAt);
    }
  };
  const startedAt = performance.now();
  await Promise.all(Array.from({ length: WIDTH }, loop));
  const seconds = (performance.now() - startedAt) / 1_000;
  await pool.close();
  return { times, seconds };
}
