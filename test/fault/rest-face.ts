import { TEST_KEY } from "../support/carillon.ts";
import { call, type Outcome } from "./calls.ts";
import { type Answer, CALL_MS, type Delivery, type Face, numberOf, payloadOf, UNSETTLED, verdictOf } from "./faces.ts";

/** Plain REST. */
export const rest: Face = {
  name: "REST",

  async publish(url, queue, drafts, key) {
    const bodies = drafts.map(({ n, group, delayMs }) => ({
      payload: payloadOf(n),
      ...(group !== "" && { group_id: group }),
      ...(delayMs > 0 && { delay_seconds: delayMs / 1_000 }),
    }));
    const options = { timeoutMs: CALL_MS, ...(key !== "" && { key }) };
    if (bodies.length === 1) {
      const outcome = await call(url, "POST", "/queue/publish", { queue, ...bodies[0] }, options);
      return answerOf(outcome, ({ message_id }) => [message_id]);
    }
    const outcome = await call(url, "POST", "/queue/publish_batch", { queue, messages: bodies }, options);
    return answerOf(outcome, ({ message_ids }) => message_ids);
  },

  async pull(url, queue, pull) {
    const body = {
      queue,
      max_messages: pull.maxMessages,
      wait_seconds: pull.waitSeconds,
      visibility_timeout: pull.leaseSeconds,
      ...(pull.requestId !== "" && { request_id: pull.requestId }),
    };
    const outcome = await call(url, "POST", "/queue/consume", body, { timeoutMs: CALL_MS + pull.waitSeconds * 1_000 });
    return answerOf(outcome, ({ messages }) => messages.map(fromRest));
  },

  async settle(url, queue, verb, { messageId, receipt }, seconds) {
    const body = {
      queue,
      message_id: messageId,
      receipt,
      ...(verb === "nack" && { delay_seconds: seconds }),
      ...(verb === "extend" && { visibility_timeout: seconds }),
    };
    const outcome = await call(url, "POST", `/queue/${verb}`, body, { timeoutMs: CALL_MS });
    return answerOf(outcome, verdictOf);
  },

  async ackAll(url, queue, held) {
    const items = held.map(({ messageId, receipt }) => ({ message_id: messageId, receipt }));
    const outcome = await call(url, "POST", "/queue/ack_batch", { queue, items }, { timeoutMs: CALL_MS });
    return answerOf(outcome, ({ results }) => results.map(verdictOf));
  },

  async *stream(url, queue, { maxUnacked, leaseSeconds }, signal) {
    const query = `max_unacked=${maxUnacked}&visibility_timeout=${leaseSeconds}&heartbeat_seconds=1`;
    const response = await fetch(`${url}/v1/scheduling/queue/consume_stream/${queue}?${query}`, {
      headers: { authorization: `Bearer ${TEST_KEY}` },
      signal,
    });
    if (!response.ok) throw new Error(JSON.parse(await response.text()).error.reason);
    let text = "";
    for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
      const lines = `${text}${chunk}`.split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) {
        const { messages, error } = JSON.parse(line);
        if (error !== undefined) throw new Error(error.reason ?? error.code);
        yield (messages ?? []).map(fromRest);
      }
    }
  },
};

function answerOf<T>(outcome: Outcome, value: (body: Extract<Outcome, { kind: "ok" }>["body"]) => T): Answer<T> {
  switch (outcome.kind) {
    case "ok":
      return { kind: "ok", value: value(outcome.body) };
    case "unknown":
      return outcome;
    case "refused": {
      const isUnsettled = UNSETTLED.has(outcome.reason) || outcome.status === 504;
      return { kind: isUnsettled ? "unknown" : "refused", why: `${outcome.status} ${outcome.reason}` };
    }
  }
}

// biome-ignore lint/suspicious/noExplicitAny: a message as JSON
function fromRest(message: any): Delivery {
  const { message_id, receipt, attempts, lease_expires_at, payload } = message;
  return {
    messageId: message_id,
    receipt,
    attempts,
    leaseExpiresAt: Date.parse(lease_expires_at),
    n: numberOf(payload),
  };
}
