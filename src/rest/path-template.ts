/**
 * A path template of `google.api.http`, compiled. The grammar is the one in `google/api/http.proto`:
 *
 *     Template  = "/" Segments [ Verb ] ;
 *     Segments  = Segment { "/" Segment } ;
 *     Segment   = "*" | "**" | LITERAL | Variable ;
 *     Variable  = "{" FieldPath [ "=" Segments ] "}" ;
 *     FieldPath = IDENT { "." IDENT } ;
 *     Verb      = ":" LITERAL ;
 */
export interface PathTemplate {
  /** The segments in order. `*` takes one path segment, `**` all that are left (none is legal). */
  readonly segments: readonly TemplateSegment[];
  /** What the path ends with after a colon. */
  readonly verb?: string;
  readonly variables: readonly TemplateVariable[];
}

/** One segment of a template. */
export type TemplateSegment =
  | { readonly kind: "literal"; readonly text: string }
  | { readonly kind: "one" }
  | { readonly kind: "rest" };

/** A variable: the field that it names, and the segments that it captures. */
export interface TemplateVariable {
  readonly fieldPath: string;
  /** Index of the first captured segment. */
  readonly start: number;
  /** Index after the last captured segment; -1 when `**` is the last one, which then captures to the end. */
  readonly end: number;
}

const IDENT = /^[A-Za-z_][A-Za-z0-9_]*$/;
const LITERAL = /^[A-Za-z0-9._~!$&'()+,;=@%-]+$/;

/**
 * Compiles a template.
 *
 * @throws Error when the text is not of the grammar, `**` is not last, or a field is bound twice.
 */
export function parsePathTemplate(text: string): PathTemplate {
  const fail = (why: string): never => {
    throw new Error(`path template ${text}: ${why}`);
  };
  if (!text.startsWith("/")) fail("it does not start with a slash");
  const { path, verb } = splitVerb(text.slice(1));
  if (verb !== undefined && !LITERAL.test(verb)) fail("the verb is not a literal");

  const segments: TemplateSegment[] = [];
  const variables: TemplateVariable[] = [];
  for (const part of splitOutsideBraces(path)) {
    if (!part.startsWith("{")) {
      segments.push(parseSegment(part) ?? fail(`"${part}" is not a segment`));
      continue;
    }
    if (!part.endsWith("}")) fail(`"${part}" is not a variable`);
    const [fieldPath = "", pattern = "*"] = splitOnce(part.slice(1, -1), "=");
    if (!fieldPath.split(".").every((name) => IDENT.test(name))) fail(`"${fieldPath}" is not a field path`);
    if (variables.some((variable) => variable.fieldPath === fieldPath)) fail(`"${fieldPath}" is bound twice`);
    const start = segments.length;
    for (const inner of pattern.split("/")) {
      segments.push(parseSegment(inner) ?? fail(`"${inner}" is not a segment`));
    }
    variables.push({ fieldPath, start, end: segments.at(-1)?.kind === "rest" ? -1 : segments.length });
  }
  const rest = segments.findIndex((segment) => segment.kind === "rest");
  if (rest !== -1 && rest !== segments.length - 1) fail("** is not the last segment");
  return { segments, variables, ...(verb === undefined ? {} : { verb }) };
}

function parseSegment(text: string): TemplateSegment | undefined {
  if (text === "*") return { kind: "one" };
  if (text === "**") return { kind: "rest" };
  return LITERAL.test(text) ? { kind: "literal", text } : undefined;
}

/** The verb follows the last colon, unless that lies in a variable or before a slash. */
function splitVerb(text: string): { path: string; verb?: string } {
  const colon = text.lastIndexOf(":");
  if (colon === -1 || text.indexOf("}", colon) !== -1 || text.indexOf("/", colon) !== -1) return { path: text };
  return { path: text.slice(0, colon), verb: text.slice(colon + 1) };
}

function splitOutsideBraces(text: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let start = 0;
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at];
    if (char === "{") depth += 1;
    else if (char === "}") depth -= 1;
    else if (char === "/" && depth === 0) {
      parts.push(text.slice(start, at));
      start = at + 1;
    }
  }
  parts.push(text.slice(start));
  return parts;
}

function splitOnce(text: string, separator: string): string[] {
  const at = text.indexOf(separator);
  return at === -1 ? [text] : [text.slice(0, at), text.slice(at + separator.length)];
}
