import { Webhook } from "standardwebhooks";
import { describe, expect, test } from "vitest";
import { formatPublicKey, newKeyPair, parsePrivateKey, signWithPrivateKey } from "../../src/webhook/key-pair.ts";
import { isSecret, newSecret, parseSigningKey, sign, verify } from "../../src/webhook/sign.ts";

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const body = Buffer.from('{"test": 2432232314}');
const keys = (...secrets: string[]) => secrets.map((secret) => parseSigningKey("v1", secret));
const pairs = (...privateKeys: string[]) => privateKeys.map((key) => parseSigningKey("v1a", key));
const message = { id: "msg_p5jXN8AQM9LWM0D4loKWxJek", timestampSeconds: 1_614_265_330, body };

describe("sign", () => {
  test("gives the signature of the specification's example", () => {
    expect(sign({ ...message, keys: keys(SECRET) })).toEqual({
      "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
      "webhook-timestamp": "1614265330",
      "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    });
  });

  test("takes raw text as its UTF-8 bytes, as the standardwebhooks package does for ASCII", () => {
    const timestampSeconds = Math.floor(Date.now() / 1_000);
    const headers = sign({ ...message, timestampSeconds, keys: keys("plain text") });
    const webhook = new Webhook("plain text", { format: "raw" });
    expect(() => webhook.verify(body.toString(), { ...headers })).not.toThrow();
  });

  test("refuses ids with a dot, no secrets and malformed ones", () => {
    for (const id of ["", "a.b", "a b", "a\r\n", "é"]) {
      expect(() => sign({ ...message, id, keys: keys(SECRET) }), id).toThrow(RangeError);
    }
    expect(() => sign({ ...message, keys: keys() })).toThrow(RangeError);
    expect(() => sign({ ...message, keys: keys(SECRET, "whsec_???") })).toThrow(RangeError);
    expect(() => sign({ ...message, timestampSeconds: 1.5, keys: keys(SECRET) })).toThrow(RangeError);
  });
});

describe("verify", () => {
  const now = { nowSeconds: message.timestampSeconds };
  const headers = { ...sign({ ...message, keys: keys(newSecret(), SECRET) }) };

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

describe("a key pair", () => {
  const pair = newKeyPair();
  const publicKey = formatPublicKey(pair.publicKey);
  const now = { nowSeconds: message.timestampSeconds };
  const headers = {
    ...sign({ ...message, keys: [...pairs(newKeyPair().privateKey), ...keys(SECRET), ...pairs(pair.privateKey)] }),
  };

  test("signs as v1a behind the secrets, and its public key verifies", () => {
    expect(headers["webhook-signature"]).toMatch(/^v1,[\w+/]{43}= v1a,[\w+/]{86}== v1a,[\w+/]{86}==$/);
    expect(publicKey).toMatch(/^whpk_[\w+/]{43}=$/);
    expect(verify(headers, body, publicKey, now)).toBe(true);
    expect(verify(headers, body, SECRET, now)).toBe(true);
    expect(verify(headers, body, formatPublicKey(newKeyPair().publicKey), now)).toBe(false);
  });

  test("does not verify any changed byte of the body, another id or another time", () => {
    for (let at = 0; at < body.length; at++) {
      const changed = Buffer.from(body);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(verify(headers, changed, publicKey, now)).toBe(false);
    }
    expect(verify({ ...headers, "webhook-id": "msg_2" }, body, publicKey, now)).toBe(false);
    expect(verify({ ...headers, "webhook-timestamp": "1614265331" }, body, publicKey, now)).toBe(false);
    expect(verify({ ...headers, "webhook-signature": "v1a,AAAA v1a, v1a" }, body, publicKey, now)).toBe(false);
  });

  test("signs what RFC 8032 says", () => {
    // Section 7.1, test 2: a seed, its public key, the message 0x72, the signature.
    const seed = Buffer.from("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "hex");
    const known = Buffer.from("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "hex");
    const privateKey = `whsk_${Buffer.concat([seed, known]).toString("base64")}`;
    expect(signWithPrivateKey(parsePrivateKey(privateKey), Buffer.from("72", "hex")).toString("hex")).toBe(
      "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da" +
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
  });

  test("is random, and malformed halves are refused", () => {
    expect(new Set(Array.from({ length: 20 }, () => newKeyPair().privateKey)).size).toBe(20);
    for (const key of ["whsk_", "whsk_AAAA", publicKey, SECRET]) expect(() => pairs(key), key).toThrow(RangeError);
    for (const key of [publicKey, pair.privateKey]) expect(() => keys(key), key).toThrow(RangeError);
    expect(() => verify(headers, body, "whpk_AAAA", now)).toThrow(RangeError);
  });

  test("does not disturb receivers that know only v1: the standardwebhooks package skips it", () => {
    const timestampSeconds = Math.floor(Date.now() / 1_000);
    const signed = { ...sign({ ...message, timestampSeconds, keys: [...keys(SECRET), ...pairs(pair.privateKey)] }) };
    const reversed = signed["webhook-signature"].split(" ").reverse().join(" ");
    for (const signature of [signed["webhook-signature"], reversed]) {
      const given = { ...signed, "webhook-signature": signature };
      expect(() => new Webhook(SECRET).verify(body.toString(), given)).not.toThrow();
    }
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
    for (const text of ["", "whsec_", "whsec_a", "whsec_a b=", "whsec_YQ", "whsk_AAAA", "whpk_AAAA"]) {
      expect(isSecret(text), text).toBe(false);
    }
  });
});
