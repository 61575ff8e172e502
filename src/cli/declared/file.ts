import { getOption, hasOption } from "@bufbuild/protobuf";
import { isAlias, isMap, isScalar, isSeq, LineCounter, type Node, parseDocument, type YAMLMap } from "yaml";
import { rest } from "../../../gen/scheduling/v1/rest_pb.js";
import { isCredential } from "../../domain/credentials.ts";
import { CommandError } from "../failure.ts";
import { brokenRules } from "./check-rules.ts";
import { EnvironmentText } from "./environment-text.ts";
import type { Field, Kind } from "./kinds.ts";
import { JSON_TAG, ValueReader } from "./read-value.ts";

/** The version of the file's form. */
export const FILE_VERSION = 1;

/** A thing that a file declares. */
export interface Declared {
  readonly kind: Kind;
  readonly line: number;
  /** In the shape of REST, by the contract's names. null is none. */
  readonly values: ReadonlyMap<string, unknown>;
  /** The id of the one that is meant, where the file says it. */
  readonly id: string | undefined;
}

/** What a file declares. A kind that it does not mention is not in `kinds`, and is not its business. */
export interface Declaration {
  readonly kinds: ReadonlySet<Kind>;
  readonly things: readonly Declared[];
}

const SECRET_RULE = `is a secret: name the variable of the environment that has it, as $\{NAME}`;

interface Problem {
  readonly line: number;
  readonly text: string;
}

/**
 * Reads a file.
 *
 * @param name of the file, for what is wrong.
 * @throws CommandError with all that is wrong, each on a line with its place.
 */
export function readDeclaration(name: string, text: string, kinds: readonly Kind[]): Declaration {
  const reader = new FileReader(text, kinds);
  const declaration = reader.read();
  if (reader.problems.length === 0) return declaration;
  const lines = reader.problems
    .toSorted((a, b) => a.line - b.line)
    .map((problem) => `  ${name}:${problem.line}: ${problem.text}`);
  throw new CommandError(`this file cannot be used:\n${lines.join("\n")}`);
}

/** What tells a thing from others of its kind. URLs count as the server writes them. */
export function identityOf(kind: Kind, field: (name: string) => unknown): string {
  return JSON.stringify(kind.identity.map((name) => normalUrl(field(name))));
}

/** How a thing is called in what people read. */
export function labelOf(kind: Kind, field: (name: string) => unknown): string {
  return `${kind.noun} ${kind.identity.map((name) => String(field(name) ?? "?")).join(" -> ")}`;
}

/** A URL as the server writes it; anything else as it is. */
export function normalUrl(value: unknown): unknown {
  const isUrl = typeof value === "string" && /^https?:\/\//i.test(value) && URL.canParse(value);
  return isUrl ? new URL(value).href : value;
}

class FileReader {
  readonly problems: Problem[] = [];
  readonly #kinds: readonly Kind[];
  readonly #lines = new LineCounter();
  readonly #document: ReturnType<typeof parseDocument>;
  readonly #things: Declared[] = [];

  constructor(text: string, kinds: readonly Kind[]) {
    this.#kinds = kinds;
    const customTags = [{ tag: JSON_TAG, resolve: (json: string) => json }];
    this.#document = parseDocument(text, { lineCounter: this.#lines, customTags });
  }

  read(): Declaration {
    const found = new Set<Kind>();
    for (const { linePos, message } of [...this.#document.errors, ...this.#document.warnings]) {
      this.problems.push({
        line: linePos?.[0].line ?? 1,
        text: message.split("\n")[0]?.replace(/ at line .*$/, "") ?? "",
      });
    }
    const root = this.#document.contents;
    if (this.problems.length > 0) return { kinds: found, things: [] };
    if (!isMap(root)) {
      this.#wrong(root, "", `it must begin with version: ${FILE_VERSION}`);
      return { kinds: found, things: [] };
    }
    if (root.get("version") !== FILE_VERSION) this.#wrong(root, "version", `must be ${FILE_VERSION}`);
    for (const { key, value } of root.items as YAMLMap<Node, Node | null>["items"]) {
      const section = isScalar(key) ? String(key.value) : "";
      const kind = this.#kinds.find((candidate) => candidate.section === section);
      if (kind !== undefined) {
        found.add(kind);
        this.#section(kind, value);
      } else if (section !== "version") {
        const known = this.#kinds.map((candidate) => candidate.section).join(", ");
        this.#wrong(key, section, `is no section; there are ${known}`);
      }
    }
    this.#refuseRepeated();
    return { kinds: found, things: this.#things };
  }

  #section(kind: Kind, node: Node | null): void {
    if (node === null || (isScalar(node) && node.value === null)) return;
    if (!isSeq(node)) {
      this.#wrong(node, kind.section, "must be a list");
      return;
    }
    for (const [index, item] of (node.items as Node[]).entries()) {
      const at = `${kind.section}[${index}]`;
      const plain = isAlias(item) ? item.resolve(this.#document) : item;
      if (isMap(plain)) this.#thing(kind, plain as YAMLMap<Node, Node | null>, at);
      else this.#wrong(item, at, `must be a ${kind.noun} with its fields`);
    }
  }

  #thing(kind: Kind, node: YAMLMap<Node, Node | null>, at: string): void {
    const values = new Map<string, unknown>();
    const lines = new Map<string, number>();
    const before = this.problems.length;
    const reader = new ValueReader(
      this.#document,
      (place, path, problem) => this.#wrong(place ?? node, `${at}.${path}`, problem),
      (path, place) => lines.set(path, this.#lineOf(place)),
    );
    let id: string | undefined;
    for (const { key, value } of node.items) {
      const spelling = isScalar(key) ? String(key.value) : "";
      const field = kind.bySpelling.get(spelling);
      if (spelling === kind.id && !kind.identity.includes(kind.id)) id = isScalar(value) ? String(value.value) : "";
      else if (field === undefined)
        this.#wrong(key, `${at}.${spelling}`, `is no field that a ${kind.noun} is declared with`);
      else if (values.has(field.name))
        this.#wrong(key, `${at}.${spelling}`, `is another name of ${field.name}, which is there already`);
      else values.set(field.name, this.#value(reader, field, key, value, at));
    }
    if (this.problems.length > before) return;
    const thing: Declared = { kind, line: this.#lineOf(node), values, id };
    this.#checkRules(thing, lines, at);
    this.#things.push(thing);
  }

  #value(reader: ValueReader, field: Field, key: Node, node: Node | null, at: string): unknown {
    const path = `${at}.${field.name}`;
    if (node === null || (isScalar(node) && node.value === null && node.tag !== JSON_TAG)) {
      if (!field.nullable) this.#wrong(key, path, "cannot be none: give a value, or leave it out");
      return null;
    }
    const isPayload = hasOption(field.desc, rest) && getOption(field.desc, rest).payloadType !== "";
    const value = reader.field(field.desc, node, field.name, isPayload);
    if (field.isSecret && typeof value === "string") {
      const text = new EnvironmentText(value);
      if (text.names.length === 1 && text.template === `\${${text.names[0]}}`) return text;
      this.#wrong(node, path, SECRET_RULE);
    }
    if (field.desc.fieldKind === "map" && field.desc.name === "headers") {
      for (const [name, text] of Object.entries(value ?? {})) {
        if (typeof text === "string" && isCredential(name)) {
          this.#wrong(node, `${path}[${JSON.stringify(name)}]`, SECRET_RULE);
        }
      }
    }
    return value;
  }

  /** Holds the thing against the rules of the contract. */
  #checkRules({ kind, line, values }: Declared, lines: ReadonlyMap<string, number>, at: string): void {
    for (const name of kind.identity) {
      if (values.has(name)) continue;
      this.problems.push({ line, text: `${at}.${name}: must be there, as a ${kind.noun} is told from others by it` });
      return;
    }
    const inCreate = new Set(kind.create.method.input.fields.map(({ name }) => name));
    const broken = [
      ...brokenRules(kind.create.method.input, values),
      ...brokenRules(kind.update.method.input, values).filter(({ at: field }) => {
        const name = field.split(/[.[]/)[0] ?? "";
        return !inCreate.has(name) && kind.bySpelling.has(name);
      }),
    ];
    for (const { at: field, rule } of broken) {
      const place = lines.get(field) ?? lines.get(field.split(/[.[]/)[0] ?? "") ?? line;
      this.problems.push({ line: place, text: `${field === "" ? at : `${at}.${field}`}: ${rule}` });
    }
  }

  /** Nothing else than its identity says which one of a kind is meant, so it stands once. */
  #refuseRepeated(): void {
    const first = new Map<string, Declared>();
    for (const thing of this.#things) {
      const { kind, values, id, line } = thing;
      const identity = kind.section + (id ?? identityOf(kind, (name) => values.get(name)));
      const other = first.get(identity);
      const label = labelOf(kind, (name) => values.get(name));
      if (other === undefined) first.set(identity, thing);
      else this.problems.push({ line, text: `${label} is declared on line ${other.line} already` });
    }
  }

  #wrong(node: Node | null | undefined, at: string, problem: string): void {
    this.problems.push({ line: this.#lineOf(node), text: at === "" ? problem : `${at}: ${problem}` });
  }

  #lineOf(node: Node | null | undefined): number {
    return this.#lines.linePos(node?.range?.[0] ?? 0).line || 1;
  }
}
