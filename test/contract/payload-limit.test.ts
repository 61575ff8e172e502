import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

const MIB = 1_048_576;

describe.each([
  { limit: "1 MiB, the default", bytes: MIB, env: {} },
  { limit: "10 MiB, the most", bytes: 10 * MIB, env: { CARILLON_MAX_PAYLOAD_BYTES: `${10 * MIB}` } },
])("with a limit of $limit", ({ bytes, env }) => {
  let carillon: TestCarillon;
  beforeAll(async () => {
    carillon = await startTestCarillon({ CARILLON_ROLE: "api", ...env });
  });
  afterAll(() => carillon[Symbol.asyncDispose]());

  /** A text whose JSON has so many bytes. */
  const textOf = (size: number) => "x".repeat(size - 2);

  test.each(queueFaces(() => carillon))(
    "a payload of so many bytes goes through, over $name",
    { timeout: 60_000 },
    async (face) => {
      const queue = unique("q");
      const payload = textOf(bytes);
      await face.call("createQueue", { queue });
      const { message_id } = await face.call("publish", { queue, payload });
      const { messages } = await face.call("consume", { queue });
      expect(messages).toHaveLength(1);
      expect(messages[0].message_id).toBe(message_id);
      expect(messages[0].payload === payload).toBe(true);
    },
  );

  test.each(queueFaces(() => carillon))("one byte more is refused, singly and in a batch, over $name", async (face) => {
    const queue = unique("q");
    const payload = textOf(bytes + 1);
    const refusal = { reason: "PAYLOAD_TOO_LARGE" };
    await expect(face.call("publish", { queue, payload })).rejects.toMatchObject(refusal);
    await expect(face.call("publishBatch", { queue, messages: [{ payload }] })).rejects.toMatchObject(refusal);
  });
});
