import { type DescEnum, type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { TimestampSchema } from "@bufbuild/protobuf/wkt";
import { type Alias, type Document, isAlias, isMap, isScalar, isSeq, type Node } from "yaml";
import { isJsonText } from "../api/exact-json.ts";
import { shortNames } from "../api/options.ts";
import { CommandError } from "../failure.ts";
import { EnvironmentText } from "./environment-text.ts";

/** The tag of a text that is JSON as it stands: for what YAML would change, such as the digits of long numbers. */
export const JSON_TAG = "!json";

/** A payload: the text of its JSON. */
export class JsonPayload {
  readonly json: string;

  constructor(json: string) {
    this.json = json;
  }
}

/** Deepest nesting that is read, and most values in all. Aliases can make a short file endless. */
const MAX_DEPTH = 64;
const MAX_VALUES = 200_000;

/** Reads the values of fields out of a YAML document, and notes what is wrong with them. */
export class ValueReader {
  readonly #document: Document;
  readonly #wrong: (node: Node | null | undefined, at: string, problem: string) => void;
  readonly #seen: (at: string, node: Node) => void;
  /** Resolving an alias walks through the document. */
  readonly #resolved = new Map<Alias, Node | undefined>();
  #values = 0;

  /**
   * @param wrong is told of each problem: where it is, and the path of the field.
   * @param seen is told where each field stands.
   */
  constructor(
    document: Document,
    wrong: (node: Node | null | undefined, at: string, problem: string) => void,
    seen: (at: string, node: Node) => void,
  ) {
    this.#document = document;
    this.#wrong = wrong;
    this.#seen = seen;
  }

  /** The value in the shape of REST; undefined when it is wrong. */
  field(field: DescField, node: Node | null, at: string, isPayload: boolean): unknown {
    const plain = this.follow(node, at);
    if (plain === undefined) return undefined;
    this.#seen(at, plain);
    if (isPayload) {
      const json = this.#json(plain, at, 0);
      return json === undefined ? undefined : new JsonPayload(json);
    }
    if (field.fieldKind === "list") {
      if (!isSeq(plain)) return this.#fail(plain, at, "must be a list");
      return plain.items.map((item, index) => this.#single(field, item as Node, `${at}[${index}]`));
    }
    if (field.fieldKind === "map") return this.#map(field, plain, at);
    return this.#single(field, plain, at);
  }

  /** The node that an alias stands for, or the node itself. */
  follow(node: Node | null | undefined, at: string): Node | undefined {
    if (node == null) return this.#fail(node, at, "must have a value");
    this.#values += 1;
    if (this.#values > MAX_VALUES) throw new CommandError(`the file holds more than ${MAX_VALUES} values`);
    if (!isAlias(node)) return node;
    const alias = node as Alias;
    if (!this.#resolved.has(alias)) this.#resolved.set(alias, alias.resolve(this.#document));
    return this.#resolved.get(alias) ?? this.#fail(node, at, "names an anchor that is not there");
  }

  #map(field: DescField, node: Node, at: string): unknown {
    if (!isMap(node)) return this.#fail(node, at, "must be names with values");
    const map: Record<string, unknown> = Object.create(null);
    for (const { key, value } of node.items) {
      const name = isScalar(key) ? String(key.value) : "";
      // HTTP does not tell the cases of a header's name apart, and the server answers in lower case.
      const stored = field.name === "headers" ? name.toLowerCase() : name;
      const text = this.#scalar(value as Node, `${at}[${JSON.stringify(name)}]`);
      if (text === undefined) continue;
      if (typeof text !== "string")
        this.#fail(value as Node, `${at}[${JSON.stringify(name)}]`, "must be text: put it in quotes");
      else map[stored] = text.includes("${") ? new EnvironmentText(text) : text;
    }
    return map;
  }

  #single(field: DescField, node: Node | null, at: string): unknown {
    const plain = this.follow(node, at);
    if (plain === undefined) return undefined;
    const message = field.message;
    if (message !== undefined && message.typeName !== TimestampSchema.typeName)
      return this.#message(message, plain, at);
    const value = this.#scalar(plain, at);
    if (value === undefined) return undefined;
    if (message !== undefined) {
      const isTime = typeof value === "string" && /^\d{4}-\d\d-\d\d/.test(value) && !Number.isNaN(Date.parse(value));
      return isTime ? value : this.#fail(plain, at, "must be a time such as 2030-01-31T09:00:00Z");
    }
    if (field.enum !== undefined) return this.#enum(field.enum, value, plain, at);
    switch (field.scalar) {
      case ScalarType.STRING:
      case ScalarType.BYTES:
        return typeof value === "string" ? value : this.#fail(plain, at, "must be text: put it in quotes");
      case ScalarType.BOOL:
        return typeof value === "boolean" ? value : this.#fail(plain, at, "must be true or false");
      case ScalarType.DOUBLE:
      case ScalarType.FLOAT:
        return Number.isFinite(value) ? value : this.#fail(plain, at, "must be a number");
      default:
        return Number.isSafeInteger(value) ? value : this.#fail(plain, at, "must be a whole number");
    }
  }

  #message(desc: DescMessage, node: Node, at: string): unknown {
    if (!isMap(node)) return this.#fail(node, at, "must be names with values");
    const value: Record<string, unknown> = {};
    for (const pair of node.items) {
      const name = isScalar(pair.key) ? String(pair.key.value) : "";
      const field = desc.fields.find((candidate) => candidate.name === name);
      if (field === undefined) this.#fail(pair.key as Node, `${at}.${name}`, "is no field");
      else value[name] = this.field(field, pair.value as Node | null, `${at}.${name}`, false);
    }
    return value;
  }

  #enum(desc: DescEnum, value: unknown, node: Node, at: string): unknown {
    const names = shortNames(desc);
    if (typeof value === "string" && names.includes(value)) return value;
    return this.#fail(node, at, `must be one of ${names.join(", ")}`);
  }

  #scalar(node: Node | null, at: string): string | number | boolean | undefined {
    const plain = this.follow(node, at);
    if (plain === undefined) return undefined;
    const value = isScalar(plain) ? plain.value : undefined;
    if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") return value;
    return this.#fail(plain, at, "must be one value");
  }

  /** The JSON text of a node; numbers keep their digits. */
  #json(node: Node | null, at: string, depth: number): string | undefined {
    if (depth > MAX_DEPTH) return this.#fail(node, at, `must not be nested deeper than ${MAX_DEPTH} levels`);
    const plain = this.follow(node, at);
    if (plain === undefined) return undefined;
    if (isMap(plain)) {
      const members = plain.items.map(({ key, value }) => {
        const name = isScalar(key) ? String(key.value) : "";
        return `${JSON.stringify(name)}:${this.#json(value as Node | null, `${at}.${name}`, depth + 1)}`;
      });
      return `{${members.join(",")}}`;
    }
    if (isSeq(plain)) {
      return `[${plain.items.map((item, index) => this.#json(item as Node, `${at}[${index}]`, depth + 1)).join(",")}]`;
    }
    if (!isScalar(plain)) return this.#fail(plain, at, "must be a value");
    if (plain.tag === JSON_TAG) {
      const text = String(plain.value).trim();
      return isJsonText(text) ? text : this.#fail(plain, at, "is not JSON");
    }
    if (typeof plain.value === "number" && plain.source !== undefined && isJsonText(plain.source)) return plain.source;
    const isJson =
      plain.value === null || ["string", "boolean"].includes(typeof plain.value) || Number.isFinite(plain.value);
    return isJson ? JSON.stringify(plain.value) : this.#fail(plain, at, "is nothing that JSON has a word for");
  }

  #fail(node: Node | null | undefined, at: string, problem: string): undefined {
    this.#wrong(node, at, problem);
  }
}
