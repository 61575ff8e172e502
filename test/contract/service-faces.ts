import {
  type DescEnum,
  type DescMessage,
  type DescMethodUnary,
  type DescService,
  fromJson,
  getOption,
  type JsonObject,
  toJson,
} from "@bufbuild/protobuf";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { http } from "../../gen/google/api/annotations_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { TEST_KEY, type TestCarillon } from "../support/carillon.ts";

// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
type Json = any;

/** The unary calls of one service in one protocol, with requests and answers as REST shows them. */
export interface ServiceFace {
  readonly name: string;
  /** Calls the method of that local name. Fails with `reason` when the call is refused. */
  call(method: string, request: JsonObject, headers?: Readonly<Record<string, string>>): Promise<Json>;
}

class CallRefusal extends Error {
  readonly reason: string;
  /** The fields that broke a rule. */
  readonly fields: readonly string[];

  constructor(reason: string, message: string, fields: readonly string[]) {
    super(message);
    this.reason = reason;
    this.fields = fields;
  }
}

/** REST by the paths of the contract, and gRPC. For services without payloads. */
export function serviceFaces(service: DescService, carillon: () => TestCarillon): readonly ServiceFace[] {
  return [restFace(service, carillon), grpcFace(service, carillon)];
}

function restFace(service: DescService, carillon: () => TestCarillon): ServiceFace {
  return {
    name: "REST",
    async call(name, request, headers) {
      const { pattern } = getOption(methodOf(service, name), http);
      if (pattern.case === undefined || pattern.case === "custom") throw new Error(`${name} has no path`);
      const left = { ...request };
      const path = pattern.value.replace("/v1/scheduling", "").replace(/\{(\w+)\}/g, (_, field: string) => {
        const value = left[field];
        delete left[field];
        return encodeURIComponent(String(value));
      });
      const verb = pattern.case.toUpperCase();
      const inQuery = verb === "GET" || verb === "DELETE";
      const query = Object.entries(left).flatMap(([field, value]) =>
        [value].flat().map((one): [string, string] => [field, String(one)]),
      );
      const target = inQuery && query.length > 0 ? `${path}?${new URLSearchParams(query)}` : path;
      const { status, body } = await carillon().rest(verb, target, inQuery ? undefined : left, headers);
      if (status === 200) return body;
      const { reason, message, details } = body.error;
      throw new CallRefusal(
        reason,
        message,
        details.map((detail: { field: string }) => detail.field),
      );
    },
  };
}

function grpcFace(service: DescService, carillon: () => TestCarillon): ServiceFace {
  let transport: Transport | undefined;
  return {
    name: "gRPC",
    async call(name, request, headers) {
      transport ??= createGrpcTransport({ baseUrl: carillon().url });
      const method = methodOf(service, name);
      const sent = { authorization: `Bearer ${TEST_KEY}`, ...headers };
      const input = fromJson(method.input, spelled(method.input, request, toContract) as JsonObject);
      try {
        const { message } = await transport.unary(method, undefined, 20_000, sent, input);
        const json = toJson(method.output, message, { useProtoFieldName: true, alwaysEmitImplicit: true });
        const answer = spelled(method.output, json as JsonObject, toRest) as Json;
        const { responseBody } = getOption(method, http);
        return responseBody === "" ? answer : answer[responseBody];
      } catch (error) {
        if (!(error instanceof ConnectError) || error.code === Code.Internal) throw error;
        const violations = error.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations);
        throw new CallRefusal(
          error.findDetails(ErrorInfoSchema)[0]?.reason ?? "",
          error.message,
          violations.map(({ field }) => field),
        );
      }
    },
  };
}

function methodOf(service: DescService, name: string): DescMethodUnary {
  const method = service.methods.find(({ localName }) => localName === name);
  if (method?.methodKind !== "unary") throw new Error(`${service.typeName} has no unary method ${name}`);
  return method as DescMethodUnary;
}

const prefixOf = (desc: DescEnum) => `${desc.name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase()}_`;
const toRest = (desc: DescEnum, value: string) => value.replace(prefixOf(desc), "").toLowerCase();
const toContract = (desc: DescEnum, value: string) => prefixOf(desc) + value.toUpperCase();

/** JSON with the values of its enums spelled anew. */
function spelled(desc: DescMessage, json: Json, spell: (desc: DescEnum, value: string) => string): Json {
  if (json === null || typeof json !== "object") return json;
  const entries = Object.entries(json as JsonObject).map(([name, value]): [string, Json] => {
    const field = desc.fields.find((one) => one.name === name);
    const each = (one: Json): Json => {
      if (field?.enum !== undefined) return spell(field.enum, one);
      return field?.message === undefined ? one : spelled(field.message, one, spell);
    };
    return [name, Array.isArray(value) ? value.map(each) : each(value)];
  });
  return Object.fromEntries(entries);
}
