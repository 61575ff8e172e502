import { describe, expect, test } from "vitest";
import { traceContext } from "../../src/domain/trace-context.ts";

const PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

describe("a traceparent", () => {
  test.each([PARENT, ` ${PARENT}`, "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"])(
    "%s is valid",
    (traceparent) => {
      expect(traceContext(traceparent, "")).toEqual({ traceparent: traceparent.trim() });
    },
  );

  test.each([
    ["nothing", ""],
    ["another version than the format allows", PARENT.replace("00-", "ff-")],
    ["more fields in version 00", `${PARENT}-more`],
    ["a trace id of zeros", "00-00000000000000000000000000000000-b7ad6b7169203331-01"],
    ["a parent id of zeros", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"],
    ["upper case", PARENT.toUpperCase()],
    ["a short trace id", PARENT.replace("0af7", "0a")],
  ])("with %s is not", (_, traceparent) => {
    expect(traceContext(traceparent, "a=1")).toBeUndefined();
  });
});

describe("a tracestate", () => {
  test.each(["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "tenant@vendor=1, b=2 ,, c=x y", "a*/-_0=!"])(
    "%s is kept",
    (tracestate) => {
      expect(traceContext(PARENT, tracestate)).toEqual({ traceparent: PARENT, tracestate });
    },
  );

  test.each([
    ["without a value", "rojo"],
    ["with a key twice", "a=1,a=2"],
    ["with a key in upper case", "Rojo=1"],
    ["with a value that holds =", "a=b=c"],
    ["of 33 members", Array.from({ length: 33 }, (_, i) => `k${i}=1`).join()],
  ])("%s is left out, and the traceparent kept", (_, tracestate) => {
    expect(traceContext(PARENT, tracestate)).toEqual({ traceparent: PARENT });
  });
});
