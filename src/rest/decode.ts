import { create, type DescMessage, type Message, ScalarType } from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { Refusal } from "../errors.ts";
import { addEntry, type Entries, initOf, RawPayload } from "./entries.ts";
import { Findings, type Strictness } from "./findings.ts";
import { JsonScanner } from "./json-scan.ts";
import { type FieldPlan, isTimestamp, type MessagePlan, planMessage } from "./message-plan.ts";
import { addQuery, maskFromText, valueFromText } from "./query.ts";
import { booleanFromText, bytesFromBase64, enumFromText, numberFromText, stringFrom, Wrong } from "./scalar.ts";
import { timestampFromEpoch, timestampFromText } from "./timestamp.ts";

/** One REST request, ready to be decoded. */
export interface RestInput {
  readonly plan: MessagePlan;
  /** The body as it was sent, decompressed. No bytes mean `{}`. */
  readonly body: Uint8Array;
  readonly query: URLSearchParams;
  /** What the path binds. */
  readonly path: ReadonlyMap<FieldPlan, string>;
  /** Most levels of nesting in the body. */
  readonly maxDepth: number;
  readonly strict: Strictness;
  /** The field that the body is the value of, as it is. Default: the body is JSON. */
  readonly rawBody?: FieldPlan | undefined;
}

/** A decoded request. The warnings are fit for a header each. */
export interface Decoded {
  readonly message: Message;
  readonly warnings: readonly string[];
}

/** The field that makes repeats safe. It is no change to what a request updates. */
const IDEMPOTENCY_KEY = "idempotency_key";

/**
 * Decodes path, body and query into the request message. The path wins over both; body and query may each give what
 * the other does not. An update mask that the caller leaves out is filled with the fields that the caller gave.
 *
 * @throws Refusal BODY_INVALID, FIELD_INVALID (with every broken field), FIELDS_CONFLICT; for strict projects
 * PATH_BODY_MISMATCH and UNKNOWN_FIELD.
 */
export function decodeRequest({ plan, body, query, path, maxDepth, strict, rawBody }: RestInput): Decoded {
  const findings = new Findings();
  const entries: Entries = new Map();
  const scanner = new JsonScanner(rawBody === undefined ? withoutByteOrderMark(body) : NOTHING, maxDepth);
  if (!scanner.atEnd) {
    if (scanner.peek() !== "object") throw new Refusal("BODY_INVALID", { detail: "it is not an object" });
    new BodyReader(scanner, path, findings).members(plan, "", entries);
    scanner.end();
  }
  addQuery(query, plan, path, entries, findings);
  const init = initOf(entries, findings);
  if (rawBody !== undefined) init[rawBody.desc.localName] = body;
  for (const [field, text] of path) {
    const value = valueFromText(field, text);
    if (value instanceof Wrong) findings.wrong(field.name, value);
    else init[field.desc.localName] = value;
  }
  const mask = plan.updateMask;
  if (mask !== undefined && (entries.get(mask)?.value ?? null) === null) {
    const given = plan.fields.filter((field) => entries.has(field) && field !== mask && field.name !== IDEMPOTENCY_KEY);
    init[mask.desc.localName] = { paths: given.map((field) => field.name) };
  }
  const warnings = findings.settle(strict);
  return { message: create(plan.desc, init), warnings };
}

const NOTHING = new Uint8Array();

/** Some editors and shells put a byte order mark in front of what they save; RFC 8259 lets a receiver pass over it. */
function withoutByteOrderMark(body: Uint8Array): Uint8Array {
  return body[0] === 0xef && body[1] === 0xbb && body[2] === 0xbf ? body.subarray(3) : body;
}

/** Reads the fields of one body, in one pass. A value that breaks a rule of its field is noted and left out. */
class BodyReader {
  readonly #scanner: JsonScanner;
  readonly #path: ReadonlyMap<FieldPlan, string>;
  readonly #findings: Findings;

  constructor(scanner: JsonScanner, path: ReadonlyMap<FieldPlan, string>, findings: Findings) {
    this.#scanner = scanner;
    this.#path = path;
    this.#findings = findings;
  }

  /** Reads the members of an object into `entries`. `prefix` leads to the object: empty, or ends with a dot. */
  members(plan: MessagePlan, prefix: string, entries: Entries): void {
    this.#scanner.object((name) => {
      const at = prefix + name;
      const field = plan.bySpelling.get(name);
      if (field === undefined) {
        this.#findings.unknown(at);
        this.#scanner.skip();
      } else if (this.#path.has(field)) this.#overrule(field, at);
      else addEntry(entries, field, { at, value: this.#value(field, at) });
    });
  }

  #overrule(field: FieldPlan, at: string): void {
    const kind = this.#scanner.peek();
    const sent = kind === "string" ? this.#scanner.string() : Buffer.from(this.#scanner.skip()).toString();
    if (kind !== "null" && sent !== this.#path.get(field)) this.#findings.overruled(`body.${at}`, field.name);
  }

  #value(field: FieldPlan, at: string): unknown {
    if (this.#scanner.peek() === "null") return this.#scanner.null();
    if (field.contentType !== undefined) return new RawPayload(this.#scanner.skip());
    if (field.desc.fieldKind === "list") return this.#list(field, at);
    if (field.desc.fieldKind === "map") return this.#map(at);
    return this.#accepted(at, this.#single(field, at));
  }

  #list(field: FieldPlan, at: string): unknown {
    if (this.#scanner.peek() !== "array") return this.#accepted(at, this.#skip("must be an array"));
    const items: unknown[] = [];
    this.#scanner.array((index) => {
      const itemAt = `${at}[${index}]`;
      items.push(this.#accepted(itemAt, this.#single(field, itemAt)));
    });
    return items;
  }

  #map(at: string): unknown {
    if (this.#scanner.peek() !== "object") return this.#accepted(at, this.#skip("must be an object of strings"));
    // Without a prototype the key "__proto__" is one like any other.
    const map: Record<string, string> = Object.create(null);
    this.#scanner.object((key) => {
      const keyAt = `${at}.${key}`;
      const name = this.#accepted(keyAt, stringFrom(key));
      const text = this.#accepted(keyAt, this.#string());
      if (typeof name === "string" && typeof text === "string") map[name] = text;
    });
    return map;
  }

  /** Reads a value that is not a list, a map or a payload. */
  #single({ desc }: FieldPlan, at: string): unknown {
    if (desc.message !== undefined) return this.#message(desc.message, desc.parent, at);
    const kind = this.#scanner.peek();
    if (desc.enum !== undefined) {
      if (kind === "string") return enumFromText(desc.enum, this.#scanner.string());
      return kind === "number" ? enumFromText(desc.enum, this.#scanner.number()) : this.#skip("must be a string");
    }
    if (desc.scalar === ScalarType.STRING) return this.#string();
    if (desc.scalar === ScalarType.BOOL) {
      if (kind === "boolean") return this.#scanner.boolean();
      return kind === "string" ? booleanFromText(this.#scanner.string()) : this.#skip("must be true or false");
    }
    if (desc.scalar === ScalarType.BYTES) {
      return kind === "string" ? bytesFromBase64(this.#scanner.string()) : this.#skip("must be a base64 string");
    }
    if (kind !== "number" && kind !== "string") return this.#skip("must be a number");
    const text = kind === "number" ? this.#scanner.number() : this.#scanner.string();
    return numberFromText(desc.scalar as ScalarType, text);
  }

  #message(desc: DescMessage, parent: DescMessage, at: string): unknown {
    const kind = this.#scanner.peek();
    if (isTimestamp(desc)) {
      if (kind === "number") return timestampFromEpoch(Number(this.#scanner.number()));
      return kind === "string" ? timestampFromText(this.#scanner.string()) : this.#skip("must be a time");
    }
    if (desc.typeName === FieldMaskSchema.typeName) {
      if (kind === "string") return maskFromText(planMessage(parent), this.#scanner.string());
      return this.#skip("must be a string with names, separated by commas");
    }
    if (kind !== "object") return this.#skip("must be an object");
    const entries: Entries = new Map();
    this.members(planMessage(desc), `${at}.`, entries);
    return initOf(entries, this.#findings);
  }

  #string(): string | Wrong {
    return this.#scanner.peek() === "string" ? stringFrom(this.#scanner.string()) : this.#skip("must be a string");
  }

  /** Passes a value of the wrong kind. */
  #skip(rule: string): Wrong {
    this.#scanner.skip();
    return new Wrong(rule);
  }

  /** The value, or undefined when it is wrong, which is then noted. */
  #accepted(at: string, value: unknown): unknown {
    if (!(value instanceof Wrong)) return value;
    this.#findings.wrong(at, value);
    return undefined;
  }
}
