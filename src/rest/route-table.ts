import { type DescField, getOption, hasOption, ScalarType } from "@bufbuild/protobuf";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { http } from "../../gen/google/api/annotations_pb.js";
import type { HttpRule } from "../../gen/google/api/http_pb.js";
import { type FieldPlan, type MessagePlan, planMessage } from "./message-plan.ts";
import { type PathTemplate, parsePathTemplate, type TemplateVariable } from "./path-template.ts";
import { decodePath, type PathSegment, unescapeSegments } from "./request-path.ts";

/** One HTTP method and path, and the call that it stands for. */
export interface Route {
  readonly httpMethod: string;
  readonly path: string;
  readonly handler: UniversalHandler;
  readonly input: MessagePlan;
  readonly output: MessagePlan;
  /** The field of the answer that is the whole body. */
  readonly responseBody?: FieldPlan;
  /** The field of the request that is the whole body, as it is. */
  readonly rawBody?: FieldPlan;
  readonly streaming: boolean;
  readonly variables: readonly { readonly field: FieldPlan; readonly capture: TemplateVariable }[];
}

/** What a request path leads to. */
export type RouteMatch =
  | { readonly kind: "route"; readonly route: Route; readonly path: ReadonlyMap<FieldPlan, string> }
  | { readonly kind: "method_not_allowed"; readonly allow: readonly string[] }
  | { readonly kind: "not_found" };

interface Node {
  readonly literals: Map<string, Node>;
  one?: Node;
  rest?: Node;
  /** By verb ("" for none) and HTTP method. */
  readonly routes: Map<string, Map<string, Route>>;
}

/** All routes of the contract, looked up by HTTP method and path. */
export class RouteTable {
  readonly routes: readonly Route[];
  readonly #basePath: readonly PathSegment[];
  readonly #root: Node = emptyNode();

  /**
   * Compiles the `google.api.http` rules of the handlers' methods. Methods without a rule have no route. Every route is
   * also found without `basePath` (such as `/v1/scheduling`) in front.
   *
   * @throws Error when two routes take the same requests, or a rule asks for what REST does not do.
   */
  constructor(handlers: readonly UniversalHandler[], basePath: string) {
    this.#basePath = decodePath(basePath);
    this.routes = handlers.flatMap(routesOf);
    for (const route of this.routes) this.#insert(route, parsePathTemplate(route.path));
  }

  /**
   * Finds the route of a request. Literals go before `*`, and `*` before `**`. One slash at the end does not count.
   * HEAD is answered like GET, but not where that is a stream.
   *
   * @param pathname the path of the request target as it was sent, without the query.
   * @throws Refusal PATH_INVALID when the path cannot be decoded.
   */
  find(httpMethod: string, pathname: string): RouteMatch {
    const sent = decodePath(pathname);
    if (sent.length > 1 && sent.at(-1)?.text === "") sent.pop();
    const full = this.#match(httpMethod, sent);
    return full.kind === "not_found" ? this.#match(httpMethod, [...this.#basePath, ...sent]) : full;
  }

  #match(httpMethod: string, segments: readonly PathSegment[]): RouteMatch {
    const offered = new Map<string, Route>();
    for (const { verb, path } of withVerbs(segments)) {
      for (const node of leaves(this.#root, path, 0)) {
        for (const [method, route] of node.routes.get(verb) ?? []) if (!offered.has(method)) offered.set(method, route);
      }
      const route = offered.get(httpMethod) ?? (httpMethod === "HEAD" ? headRoute(offered) : undefined);
      if (route !== undefined) return { kind: "route", route, path: captures(route, path) };
    }
    if (offered.size === 0) return { kind: "not_found" };
    const allow = [...offered.keys(), ...(headRoute(offered) === undefined ? [] : ["HEAD"])];
    return { kind: "method_not_allowed", allow: allow.toSorted() };
  }

  #insert(route: Route, template: PathTemplate): void {
    let node = this.#root;
    for (const segment of template.segments) {
      if (segment.kind === "literal") {
        const next = node.literals.get(segment.text) ?? emptyNode();
        node.literals.set(segment.text, next);
        node = next;
      } else {
        const next = node[segment.kind] ?? emptyNode();
        node[segment.kind] = next;
        node = next;
      }
    }
    const verb = template.verb ?? "";
    const byMethod = node.routes.get(verb) ?? new Map<string, Route>();
    const other = byMethod.get(route.httpMethod);
    if (other !== undefined) {
      throw new Error(
        `${route.httpMethod} ${route.path} of ${route.handler.method} is taken by ${other.handler.method}`,
      );
    }
    byMethod.set(route.httpMethod, route);
    node.routes.set(verb, byMethod);
  }
}

function emptyNode(): Node {
  return { literals: new Map(), routes: new Map() };
}

function headRoute(offered: ReadonlyMap<string, Route>): Route | undefined {
  const get = offered.get("GET");
  return get?.streaming === false ? get : undefined;
}

/** The nodes that the path leads to, best match first. A variable takes no empty segment. */
function* leaves(node: Node, path: readonly PathSegment[], at: number): Generator<Node> {
  const segment = path[at];
  if (segment === undefined) {
    yield node;
  } else if (segment.text !== "") {
    const literal = node.literals.get(segment.text);
    if (literal !== undefined) yield* leaves(literal, path, at + 1);
    if (node.one !== undefined) yield* leaves(node.one, path, at + 1);
  }
  if (node.rest !== undefined && path.slice(at).every(({ text }) => text !== "")) yield node.rest;
}

/** The path with its last segment whole, and with what follows the last colon in it taken as a verb. */
function* withVerbs(path: readonly PathSegment[]): Generator<{ verb: string; path: readonly PathSegment[] }> {
  yield { verb: "", path };
  const last = path.at(-1);
  const colon = last?.raw.lastIndexOf(":") ?? -1;
  if (last === undefined || colon === -1) return;
  const [text = "", verb = ""] = [last.raw.slice(0, colon), last.raw.slice(colon + 1)].map(decodeURIComponent);
  yield { verb, path: [...path.slice(0, -1), { raw: last.raw.slice(0, colon), text }] };
}

function captures(route: Route, path: readonly PathSegment[]): Map<FieldPlan, string> {
  const bound = new Map<FieldPlan, string>();
  for (const { field, capture } of route.variables) {
    const captured = path.slice(capture.start, capture.end === -1 ? undefined : capture.end);
    bound.set(field, captured.length === 1 ? (captured[0]?.text ?? "") : unescapeSegments(captured));
  }
  return bound;
}

function routesOf(handler: UniversalHandler): Route[] {
  const { method } = handler;
  if (!hasOption(method, http)) return [];
  const rule = getOption(method, http);
  return [rule, ...rule.additionalBindings].map((binding) => routeOf(handler, binding));
}

function routeOf(handler: UniversalHandler, rule: HttpRule): Route {
  const { method } = handler;
  const { pattern } = rule;
  if (pattern.case === undefined) throw new Error(`${method}: the http rule has no pattern`);
  const input = planMessage(method.input);
  const rawBody = input.fields.find((field) => field.name === rule.body);
  if (rule.body !== "" && rule.body !== "*" && rawBody?.rawBodyBytes === undefined)
    throw new Error(`${method}: REST takes the body as the whole request, or as a field that is raw`);
  if (method.methodKind !== "unary" && method.methodKind !== "server_streaming") {
    throw new Error(`${method}: REST cannot stream requests`);
  }
  const isCustom = pattern.case === "custom";
  const path = isCustom ? pattern.value.path : pattern.value;
  const output = planMessage(method.output);
  const responseBody = output.fields.find((field) => field.name === rule.responseBody);
  if (rule.responseBody !== "" && responseBody === undefined)
    throw new Error(`${method}: no field ${rule.responseBody}`);
  return {
    httpMethod: isCustom ? pattern.value.kind.toUpperCase() : pattern.case.toUpperCase(),
    path,
    handler,
    input,
    output,
    ...(responseBody === undefined ? {} : { responseBody }),
    ...(rawBody === undefined ? {} : { rawBody }),
    streaming: method.methodKind === "server_streaming",
    variables: parsePathTemplate(path).variables.map((capture) => {
      const field = input.fields.find(({ name }) => name === capture.fieldPath);
      if (field === undefined || !isPathField(field.desc))
        throw new Error(`${method}: ${capture.fieldPath} cannot be in a path`);
      return { field, capture };
    }),
  };
}

function isPathField(field: DescField): boolean {
  return field.fieldKind === "enum" || (field.fieldKind === "scalar" && field.scalar !== ScalarType.BYTES);
}
