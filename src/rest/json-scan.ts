import { isUtf8 } from "node:buffer";
import { Refusal } from "../errors.ts";

/** The kind of a JSON value. */
export type JsonKind = "object" | "array" | "string" | "number" | "boolean" | "null";

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const ARRAY_OPEN = 0x5b;
const ARRAY_CLOSE = 0x5d;
const OBJECT_OPEN = 0x7b;
const OBJECT_CLOSE = 0x7d;

const LITERALS = { true: Buffer.from("true"), false: Buffer.from("false"), null: Buffer.from("null") };

/**
 * Reads one JSON document from bytes, value by value, without building it. It accepts exactly RFC 8259, and on top
 * refuses invalid UTF-8, more than `maxDepth` levels of nesting, and a name that occurs twice in an object that it
 * opens. What is skipped may hold duplicate names and lone surrogate escapes: that is its sender's business.
 *
 * Every method reads the next value and throws the refusal BODY_INVALID where the text is wrong.
 */
export class JsonScanner {
  readonly #bytes: Buffer;
  readonly #maxDepth: number;
  #at = 0;
  /** Where the value that was read last ends, before the white space that follows it. */
  #lastEnd = 0;
  #depth = 0;

  constructor(bytes: Uint8Array, maxDepth: number) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#maxDepth = maxDepth;
    if (!isUtf8(this.#bytes)) throw invalid("it is not UTF-8");
    this.#space();
  }

  /** Whether nothing but white space is left. */
  get atEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  /** The kind of the next value, by its first byte. */
  peek(): JsonKind {
    const byte = this.#bytes[this.#at];
    if (byte === OBJECT_OPEN) return "object";
    if (byte === ARRAY_OPEN) return "array";
    if (byte === QUOTE) return "string";
    if (byte === 0x74 || byte === 0x66) return "boolean";
    if (byte === 0x6e) return "null";
    if (byte === 0x2d || isDigit(byte)) return "number";
    throw this.#unexpected("a value");
  }

  /** Reads an object. `onMember` is called at each value and must read exactly that one. */
  object(onMember: (name: string) => void): void {
    const names = new Set<string>();
    this.#enter(OBJECT_OPEN);
    if (this.#closes(OBJECT_CLOSE)) return;
    do {
      const name = this.string();
      if (names.has(name)) throw invalid(`the name ${JSON.stringify(shorten(name))} occurs twice`);
      names.add(name);
      this.#take(COLON, "':'");
      onMember(name);
    } while (this.#continues(OBJECT_CLOSE));
  }

  /** Reads an array. `onItem` is called at each value and must read exactly that one. */
  array(onItem: (index: number) => void): void {
    this.#enter(ARRAY_OPEN);
    if (this.#closes(ARRAY_CLOSE)) return;
    let index = 0;
    do {
      onItem(index);
      index += 1;
    } while (this.#continues(ARRAY_CLOSE));
  }

  /** Reads a string. The result may hold lone surrogates, where they came as escapes. */
  string(): string {
    const start = this.#at;
    const escaped = this.#scanString();
    const end = this.#lastEnd;
    if (escaped) return JSON.parse(this.#bytes.toString("utf8", start, end)) as string;
    return this.#bytes.toString("utf8", start + 1, end - 1);
  }

  /** Reads a number and gives its text as it was sent: the caller judges range and precision. */
  number(): string {
    const start = this.#at;
    this.#scanNumber();
    return this.#bytes.toString("latin1", start, this.#lastEnd);
  }

  /** Reads `true` or `false`. */
  boolean(): boolean {
    const isTrue = this.#bytes[this.#at] === 0x74;
    this.#literal(isTrue ? LITERALS.true : LITERALS.false);
    return isTrue;
  }

  /** Reads `null`. */
  null(): null {
    this.#literal(LITERALS.null);
    return null;
  }

  /** Reads past any value, checking it, and gives its bytes as they were sent. They share memory with the document. */
  skip(): Uint8Array {
    const start = this.#at;
    this.#skipValue();
    return this.#bytes.subarray(start, this.#lastEnd);
  }

  /** Makes sure that the document ends here. */
  end(): void {
    if (!this.atEnd) throw this.#unexpected("the end");
  }

  #skipValue(): void {
    switch (this.peek()) {
      case "object":
        this.#enter(OBJECT_OPEN);
        if (this.#closes(OBJECT_CLOSE)) return;
        do {
          this.#scanString();
          this.#take(COLON, "':'");
          this.#skipValue();
        } while (this.#continues(OBJECT_CLOSE));
        return;
      case "array":
        this.#enter(ARRAY_OPEN);
        if (this.#closes(ARRAY_CLOSE)) return;
        do this.#skipValue();
        while (this.#continues(ARRAY_CLOSE));
        return;
      case "string":
        this.#scanString();
        return;
      case "number":
        this.#scanNumber();
        return;
      case "boolean":
        this.boolean();
        return;
      case "null":
        this.null();
    }
  }

  #enter(open: number): void {
    this.#take(open, open === OBJECT_OPEN ? "'{'" : "'['");
    this.#depth += 1;
    if (this.#depth > this.#maxDepth) throw invalid(`it is nested deeper than ${this.#maxDepth} levels`);
  }

  /** Passes the closing bracket if it comes next. */
  #closes(close: number): boolean {
    if (this.#bytes[this.#at] !== close) return false;
    this.#depth -= 1;
    this.#at += 1;
    this.#finish();
    return true;
  }

  /** Passes the comma before another element, or the closing bracket. */
  #continues(close: number): boolean {
    if (this.#bytes[this.#at] === COMMA) {
      this.#at += 1;
      this.#space();
      return true;
    }
    if (this.#closes(close)) return false;
    throw this.#unexpected(close === OBJECT_CLOSE ? "',' or '}'" : "',' or ']'");
  }

  #take(byte: number, name: string): void {
    if (this.#bytes[this.#at] !== byte) throw this.#unexpected(name);
    this.#at += 1;
    this.#space();
  }

  #literal(text: Buffer): void {
    for (const byte of text) {
      if (this.#bytes[this.#at] !== byte) throw this.#unexpected("a value");
      this.#at += 1;
    }
    this.#finish();
  }

  /** Passes a string and says whether it has escapes. */
  #scanString(): boolean {
    const bytes = this.#bytes;
    if (bytes[this.#at] !== QUOTE) throw this.#unexpected("a string");
    let at = this.#at + 1;
    let escaped = false;
    for (;;) {
      const byte = bytes[at];
      if (byte === undefined) throw invalid("it ends within a string");
      if (byte === QUOTE) break;
      if (byte < 0x20) throw invalid(`a string holds an unescaped control character at byte ${at}`);
      if (byte === BACKSLASH) {
        escaped = true;
        at += escapeLength(bytes, at);
      } else at += 1;
    }
    this.#at = at + 1;
    this.#finish();
    return escaped;
  }

  #scanNumber(): void {
    if (this.#bytes[this.#at] === 0x2d) this.#at += 1;
    if (this.#bytes[this.#at] === 0x30) this.#at += 1;
    else this.#digits();
    if (this.#bytes[this.#at] === 0x2e) {
      this.#at += 1;
      this.#digits();
    }
    const exponent = this.#bytes[this.#at];
    if (exponent === 0x65 || exponent === 0x45) {
      this.#at += 1;
      const sign = this.#bytes[this.#at];
      if (sign === 0x2b || sign === 0x2d) this.#at += 1;
      this.#digits();
    }
    this.#finish();
  }

  #digits(): void {
    if (!isDigit(this.#bytes[this.#at])) throw this.#unexpected("a digit");
    while (isDigit(this.#bytes[this.#at])) this.#at += 1;
  }

  /** Ends a value and passes the white space after it. */
  #finish(): void {
    this.#lastEnd = this.#at;
    this.#space();
  }

  #space(): void {
    for (;;) {
      const byte = this.#bytes[this.#at];
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return;
      this.#at += 1;
    }
  }

  #unexpected(wanted: string): Refusal {
    if (this.atEnd) return invalid(`it ends where ${wanted} should be`);
    return invalid(`${wanted} is missing at byte ${this.#at}`);
  }
}

/** Whether the bytes are one JSON value of at most `maxDepth` levels, with nothing but white space around it. */
export function isJson(bytes: Uint8Array, maxDepth: number): boolean {
  try {
    const scanner = new JsonScanner(bytes, maxDepth);
    scanner.skip();
    return scanner.atEnd;
  } catch (error) {
    if (error instanceof Refusal) return false;
    throw error;
  }
}

function escapeLength(bytes: Buffer, at: number): number {
  const kind = bytes[at + 1];
  if (kind === 0x75) {
    for (let i = 2; i < 6; i += 1) {
      if (!isHexDigit(bytes[at + i])) throw invalid(`the escape at byte ${at} is not \\u and four hexadecimal digits`);
    }
    return 6;
  }
  if (kind === undefined || !'"\\/bfnrt'.includes(String.fromCharCode(kind))) {
    throw invalid(`the escape at byte ${at} is not one of JSON`);
  }
  return 2;
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= 0x30 && byte <= 0x39;
}

function isHexDigit(byte: number | undefined): boolean {
  return isDigit(byte) || (byte !== undefined && (byte | 0x20) >= 0x61 && (byte | 0x20) <= 0x66);
}

function shorten(name: string): string {
  return name.length > 64 ? `${name.slice(0, 64)}…` : name;
}

function invalid(detail: string): Refusal {
  return new Refusal("BODY_INVALID", { detail });
}
