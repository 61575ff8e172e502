import { readdirSync, readFileSync } from "node:fs";
import { type DescField, type DescMethod, getOption, hasOption } from "@bufbuild/protobuf";
import type { GenFile } from "@bufbuild/protobuf/codegenv2";
import { http } from "../../../gen/google/api/annotations_pb.js";

/** What all paths of the contract begin with. */
const BASE = "/v1/scheduling/";
const GENERATED = new URL("../../../gen/scheduling/v1/", import.meta.url);

/** A call of the contract that has a REST path, which also gives it its command. */
export interface Call {
  readonly method: DescMethod;
  readonly httpMethod: string;
  /** `/v1/scheduling/queue/dlq/list/{queue}` */
  readonly path: string;
  /** What its path says without what varies: `queue`, `dlq`, `list`. */
  readonly words: readonly string[];
  /** The fields in the path, in its order. */
  readonly inPath: readonly DescField[];
  /** Whether the other fields go in a body and not in the query. */
  readonly hasBody: boolean;
  /** The field of the answer that is all of the body; undefined when the answer itself is. */
  readonly responseBody: DescField | undefined;
  readonly isStream: boolean;
}

/** Every call that has a path, by its words. Calls that stream requests have none. */
export async function loadCalls(): Promise<readonly Call[]> {
  const files = readdirSync(GENERATED).filter((name) => name.endsWith("_pb.js"));
  const modules = await Promise.all(files.map((name): Promise<object> => import(new URL(name, GENERATED).href)));
  const services = modules.flatMap((module) => Object.values(module).filter(isFile)).flatMap((file) => file.services);
  const calls = services.flatMap((service) => service.methods.flatMap(callOf));
  return calls.toSorted((a, b) => (a.words.join(" ") < b.words.join(" ") ? -1 : 1));
}

/** The comments of the contract by full name: `scheduling.v1.CronService.CreateCronJob`, `scheduling.v1.Queue.queue`. */
export function loadComments(): Readonly<Record<string, string>> {
  return JSON.parse(readFileSync(new URL("comments.json", GENERATED), "utf8"));
}

function isFile(value: unknown): value is GenFile {
  return typeof value === "object" && value !== null && "kind" in value && value.kind === "file";
}

function callOf(method: DescMethod): Call[] {
  if (!hasOption(method, http)) return [];
  const rule = getOption(method, http);
  const { case: verb, value: path } = rule.pattern;
  if (verb === undefined || verb === "custom" || !path.startsWith(BASE)) return [];
  // A body that is taken as it is, is for programs that know nothing of us.
  if (rule.body !== "" && rule.body !== "*") return [];
  const segments = path.slice(BASE.length).split("/");
  const fieldCalled = (name: string): DescField => {
    const field = method.input.fields.find((candidate) => candidate.name === name);
    if (field === undefined) throw new Error(`${method}: its path names ${name}, which is no field`);
    return field;
  };
  const inPath = segments.flatMap((segment) => {
    const name = /^\{(\w+)\}$/.exec(segment)?.[1];
    return name === undefined ? [] : [fieldCalled(name)];
  });
  const call: Call = {
    method,
    httpMethod: verb.toUpperCase(),
    path,
    words: segments.filter((segment) => !segment.startsWith("{")),
    inPath,
    hasBody: rule.body === "*",
    responseBody: method.output.fields.find(({ name }) => name === rule.responseBody),
    isStream: method.methodKind === "server_streaming",
  };
  return [call];
}
