import { getOption, hasOption } from "@bufbuild/protobuf";
import { Document, Scalar } from "yaml";
import { rest } from "../../../gen/scheduling/v1/rest_pb.js";
import { HIDDEN } from "../../domain/credentials.ts";
import type { Connection } from "../api/client.ts";
import type { Fields } from "../api/pages.ts";
import { EnvironmentText } from "./environment-text.ts";
import { FILE_VERSION, identityOf } from "./file.ts";
import type { Field, Kind } from "./kinds.ts";
import { queueNames } from "./plan.ts";
import { JSON_TAG } from "./read-value.ts";
import { readAll } from "./server.ts";

/**
 * Writes what a server has as a file that declares it. Secrets are not in it: where a credential is known to be there, the
 * file names a variable for it.
 */
export async function exportFile(connection: Connection, kinds: readonly Kind[]): Promise<string> {
  const sections: Record<string, unknown> = { version: FILE_VERSION };
  const queues = await queueNames(connection, kinds);
  for (const kind of kinds) {
    const records = await readAll(connection, kind, queues);
    const identities = records.map((record) => identityOf(kind, (name) => record[name]));
    const things = records.map((record, index) => {
      const identity = identities[index] ?? "";
      const isAlone = identities.filter((other) => other === identity).length === 1;
      const id = isAlone || kind.identity.includes(kind.id) ? {} : { [kind.id]: record[kind.id] };
      return { identity: identity + String(record[kind.id]), fields: { ...id, ...declaredFields(kind, record) } };
    });
    sections[kind.section] = things.toSorted((a, b) => (a.identity < b.identity ? -1 : 1)).map(({ fields }) => fields);
  }
  const document = new Document(sections);
  return document.toString({ lineWidth: 0 });
}

function declaredFields(kind: Kind, record: Fields): Record<string, unknown> {
  const silent = kind.silent(record);
  const given = kind.fields.flatMap((field): [string, unknown][] => {
    const value = record[field.name];
    if (value === undefined || field.isSecret || silent.includes(field.name)) return [];
    if (field.name === kind.alternative && value === "") return [];
    return [[field.name, declaredValue(kind, field, value, record)]];
  });
  return Object.fromEntries(given);
}

function declaredValue(kind: Kind, { desc }: Field, value: unknown, record: Fields): unknown {
  if (hasOption(desc, rest) && getOption(desc, rest).payloadType !== "") return payloadValue(value);
  if (desc.fieldKind !== "map") return value;
  const texts = Object.entries(value as Record<string, string>).map(([key, text]): [string, string] => {
    if (text !== HIDDEN) return [key, EnvironmentText.escape(text)];
    return [key, `\${${variableName([...kind.identity.map((name) => String(record[name])), key])}}`];
  });
  return Object.fromEntries(texts);
}

/** A name for the variable of a credential: `NIGHTLY_AUTHORIZATION`. */
function variableName(words: readonly string[]): string {
  const name = words
    .map((word) => word.replace(/^https?:\/\//, ""))
    .join("_")
    .replace(/[^A-Za-z0-9]+/g, "_");
  return name.replace(/^(?=\d)/, "_").toUpperCase();
}

/** JSON as YAML where that changes nothing of it, otherwise its text. */
function payloadValue(value: unknown): unknown {
  const json = JSON.stringify(value);
  const plain: unknown = JSON.parse(json);
  // A bare null would say that there is none.
  if (plain !== null && JSON.stringify(plain) === json) return plain;
  const text = new Scalar(json);
  text.tag = JSON_TAG;
  return text;
}
