import { describe, expect, test } from "vitest";
import { parsePathTemplate } from "../../src/rest/path-template.ts";

function shape(template: string): string {
  const { segments, verb, variables } = parsePathTemplate(template);
  const parts = segments.map((segment) =>
    segment.kind === "literal" ? segment.text : { one: "*", rest: "**" }[segment.kind],
  );
  const bound = variables.map(({ fieldPath, start, end }) => `${fieldPath}=${start}..${end}`);
  return [parts.join("/"), verb ?? "", ...bound].join(" ").trim();
}

describe("a path template", () => {
  test.each([
    ["/v1/queues", "v1/queues"],
    ["/v1/{name}", "v1/*  name=1..2"],
    ["/v1/*/x", "v1/*/x"],
    ["/v1/{name=shelves/*}/books", "v1/shelves/*/books  name=1..3"],
    ["/v1/{name=shelves/*/books/*}:publish", "v1/shelves/*/books/* publish name=1..5"],
    ["/v1/{path=**}", "v1/**  path=1..-1"],
    ["/v1/**:watch", "v1/** watch"],
    ["/{a.b.c}/{d_1}", "*/*  a.b.c=0..1 d_1=1..2"],
    ["/v1/{id}:cancel", "v1/* cancel id=1..2"],
  ])("%s is understood", (template, expected) => {
    expect(shape(template)).toBe(expected);
  });

  test.each([
    "",
    "v1/queues",
    "/v1//x",
    "/v1/",
    "/v1/{name",
    "/v1/{}",
    "/v1/{1a}",
    "/v1/{a=}",
    "/v1/{a}{b}",
    "/v1/{a}/{a}",
    "/v1/**/x",
    "/v1/{a=**}/x",
    "/v1/x y",
    "/v1/x:",
    "/v1/{a={b}}",
    "/v1/***",
  ])("%j is refused", (template) => {
    expect(() => parsePathTemplate(template)).toThrow(/path template/);
  });
});
