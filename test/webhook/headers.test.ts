import { describe, expect, test } from "vitest";
import { Refusal } from "../../src/errors.ts";
import { checkHeaders } from "../../src/webhook/headers.ts";

describe("checkHeaders", () => {
  test("lowers the names and trims the values", () => {
    const headers = {
      Authorization: "Bearer x",
      "X-A": " b\tc ",
      "content-type": "text/plain",
      "X-Latin": "é",
      "x-empty": "",
    };
    expect(checkHeaders("headers", headers)).toEqual({
      authorization: "Bearer x",
      "x-a": "b\tc",
      "content-type": "text/plain",
      "x-latin": "é",
      "x-empty": "",
    });
  });

  test.each([
    ..."host|Content-Length|transfer-encoding|Connection|keep-alive|TE|trailer|upgrade|expect|proxy-authorization".split(
      "|",
    ),
    ..."Proxy-Connection|forwarded|x-forwarded-for|X-Forwarded-Host|via|cookie2|webhook-id|Webhook-Signature".split(
      "|",
    ),
    ..."webhook-anything|carillon-run|X-Carillon-Attempt|accept-encoding|x-real-ip|http2-settings".split("|"),
  ])("refuses the reserved name %s", (name) => {
    expect(() => checkHeaders("headers", { [name]: "x" })).toThrow(/reserved/);
  });

  test.each(["", ":authority", "a b", "a:", "a\r\nb", "é", "a\0", "(a)", "a,b", "a/b", '"a"'])(
    "refuses the name %j",
    (name) => {
      expect(() => checkHeaders("headers", { [name]: "x" })).toThrow(Refusal);
    },
  );

  test.each(["a\r\nx: y", "a\nb", "a\rb", "a\0", "\u2028", "日本", "a\x7f", "a\x1b", "\u0100"])(
    "refuses the value %j",
    (value) => {
      expect(() => checkHeaders("headers", { "x-a": value })).toThrow(/headers\["x-a"\]: the value/);
    },
  );

  test("refuses one name in two cases", () => {
    expect(() => checkHeaders("headers", { "X-A": "1", "x-a": "2" })).toThrow(/twice/);
  });

  test("takes 32 headers and 8,192 bytes, and no more", () => {
    const many = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, n) => [`x-${n}`, "v"]));
    expect(Object.keys(checkHeaders("headers", many(32)))).toHaveLength(32);
    expect(() => checkHeaders("headers", many(33))).toThrow(/at most 32/);
    expect(checkHeaders("headers", { "x-a": "v".repeat(8_189) })).toBeDefined();
    expect(() => checkHeaders("headers", { "x-a": "v".repeat(8_190) })).toThrow(/at most 8192 bytes/);
  });

  test("keeps names that mean something to JavaScript", () => {
    const given = JSON.parse('{"__proto__": "a", "constructor": "b"}');
    expect(Object.entries(checkHeaders("headers", given))).toEqual([
      ["__proto__", "a"],
      ["constructor", "b"],
    ]);
  });
});
