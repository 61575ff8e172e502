import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
let app: pg.Client;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
  app = new pg.Client({ connectionString: carillon.database.url });
  await app.connect();
});
afterAll(async () => {
  await app.end();
  await carillon[Symbol.asyncDispose]();
});

describe.each(queueFaces(() => carillon))("what a program publishes by SQL is consumed over $name", (face) => {
  const project = async (): Promise<string> => {
    const { rows } = await app.query("select name from projects");
    expect(rows).toHaveLength(1);
    return rows[0].name;
  };
  const publish = async (queue: string, payload: unknown): Promise<string> =>
    (
      await app.query("select carillon_publish($1, $2, $3::jsonb) as id", [
        await project(),
        queue,
        JSON.stringify(payload),
      ])
    ).rows[0].id;

  test("when its transaction commits, and never when that is rolled back", async () => {
    const queue = unique("q");
    await face.call("createQueue", { queue });
    const consume = async () => (await face.call("consume", { queue, max_messages: 10 })).messages;
    await app.query("begin");
    await publish(queue, { n: 1 });
    expect(await consume()).toEqual([]);
    await app.query("rollback");
    await app.query("begin");
    const message_id = await publish(queue, { n: 2 });
    await app.query("commit");
    const messages = await consume();
    expect(messages).toMatchObject([{ message_id, payload: { n: 2 } }]);
    const { receipt } = messages[0];
    expect(await face.call("ack", { queue, message_id, receipt })).toMatchObject({ acked: true });
  });

  test("by the consumer that waits for it", async () => {
    const queue = unique("q");
    await face.call("createQueue", { queue });
    const waiting = face.call("consume", { queue, wait_seconds: 20 });
    const message_id = await publish(queue, "x");
    expect((await waiting).messages).toMatchObject([{ message_id }]);
  });
});
