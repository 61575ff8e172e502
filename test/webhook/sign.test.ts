import { Webhook } from "standardwebhooks";
import { describe, expect, test } from "vitest";
import { isSecret, newSecret, sign, verify } from "../../src/webhook/sign.ts";

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const body = Buffer.from('{"test": 2432232314}');
const message = { id: "msg_p5jXN8AQM9LWM0D4loKWxJek", timestampSeconds: 1_614_265_330, body };

describe("sign", () => {
  test("gives the signature of the specification's example", () => {
    expect(sign({ ...message, secrets: [SECRET] })).toEqual({
      "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
      "webhook-timestamp": "1614265330",
      "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    });
  });

  test("takes raw text as its UTF-8 bytes, as the standardwebhooks package does for ASCII", () => {
    const timestampSeconds = Math.floor(Date.now() / 1_000);
    const headers = sign({ ...message, timestampSeconds, secrets: ["plain text"] });
    const webhook = new Webhook("plain text", { format: "raw" });
    expect(() => webhook.verify(body.toString(), { ...headers })).not.toThrow();
  });

  test("refuses ids with a dot, no secrets and malformed ones", () => {
    for (const id of ["", "a.b", "a b", "a\r\n", "é"]) {
      expect(() => sign({ ...message, id, secrets: [SECRET] }), id).toThrow(RangeError);
    }
    expect(() => sign({ ...message, secrets: [] })).toThrow(RangeError);
    expect(() => sign({ ...message, secrets: [SECRET, "whsec_???"] })).toThrow(RangeError);
    expect(() => sign({ ...message, timestampSeconds: 1.5, secrets: [SECRET] })).toThrow(RangeError);
  });
});

describe("verify", () => {
  const now = { nowSeconds: message.timestampSeconds };
  const headers = { ...sign({ ...message, secrets: [newSecret(), SECRET] }) };

  test("finds the right one of several signatures", () => {
    expect(verify(headers, body, SECRET, now)).toBe(true);
    expect(verify(headers, body, newSecret(), now)).toBe(false);
  });

  test("refuses any changed byte of the body, and another id or time", () => {
    for (let at = 0; at < body.length; at++) {
      const changed = Buffer.from(body);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(verify(headers, changed, SECRET, now)).toBe(false);
    }
    expect(verify({ ...headers, "webhook-id": "msg_2" }, body, SECRET, now)).toBe(false);
    expect(verify({ ...headers, "webhook-timestamp": "1614265331" }, body, SECRET, now)).toBe(false);
  });

  test("refuses requests older or newer than the tolerance", () => {
    const at = (seconds: number, toleranceSeconds?: number) =>
      verify(headers, body, SECRET, {
        nowSeconds: message.timestampSeconds + seconds,
        ...(toleranceSeconds === undefined ? {} : { toleranceSeconds }),
      });
    expect([at(300), at(-300), at(301), at(-301)]).toEqual([true, true, false, false]);
    expect([at(10, 10), at(11, 10)]).toEqual([true, false]);
  });

  test.each(["", "v1,", "v1", "v2,g0hM", "v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "v1,AAAA", " "])(
    "refuses the signature %j without failing",
    (signature) => {
      expect(verify({ ...headers, "webhook-signature": signature }, body, SECRET, now)).toBe(false);
    },
  );

  test("refuses missing and repeated headers, and times that are no number", () => {
    for (const name of ["webhook-id", "webhook-timestamp", "webhook-signature"]) {
      expect(verify({ ...headers, [name]: undefined }, body, SECRET, now)).toBe(false);
      expect(verify({ ...headers, [name]: ["a", "b"] }, body, SECRET, now)).toBe(false);
    }
    expect(verify({ ...headers, "webhook-timestamp": "NaN" }, body, SECRET, now)).toBe(false);
  });
});

describe("a secret", () => {
  test("made here is whsec_ and 32 bytes, another each time", () => {
    const secrets = new Set(Array.from({ length: 100 }, newSecret));
    expect(secrets.size).toBe(100);
    for (const secret of secrets) {
      expect(isSecret(secret)).toBe(true);
      expect(Buffer.from(secret.replace("whsec_", ""), "base64")).toHaveLength(32);
    }
  });

  test("is any text, but base64 behind whsec_", () => {
    expect(["x", "plain text", "é", SECRET].map(isSecret)).toEqual([true, true, true, true]);
    expect(["", "whsec_", "whsec_a", "whsec_a b=", "whsec_YQ"].map(isSecret)).toEqual([
      false,
      false,
      false,
      false,
      false,
    ]);
  });
});
