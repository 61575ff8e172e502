import { Refusal } from "../errors.ts";

/** The most headers that a user may set, and the most bytes of their names and values together. */
const MAX_HEADERS = 32;
const MAX_BYTES = 8_192;

/** Names that the connection, the guard or the signature owns. `-` at the end stands for every name that starts so. */
const OWNED = [
  "accept-encoding",
  "carillon-",
  "connection",
  "content-length",
  "cookie2",
  "expect",
  "forwarded",
  "host",
  "http2-settings",
  "keep-alive",
  "proxy-",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "via",
  "webhook-",
  "x-carillon-",
  "x-forwarded-",
  "x-real-ip",
];

/** RFC 9110 section 5.6.2. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
/** RFC 9110 section 5.5: visible characters, blanks and tabs, and the upper half of latin1. */
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

/**
 * Checks the headers that a user wants on outgoing requests and returns them with lower-case names and trimmed values.
 * Throws Refusal FIELD_INVALID, for `field[name]` where one header is to blame: a name that is not a token, that is
 * reserved or given twice, a value with characters outside latin1 or with line ends, more than 32 headers, more than
 * 8,192 bytes together. Of headers that come from several places, each of which was checked, that many are allowed
 * for each of the `sources`.
 */
export function checkHeaders(
  field: string,
  headers: Readonly<Record<string, string>>,
  sources = 1,
): Record<string, string> {
  const entries = Object.entries(headers);
  if (entries.length > MAX_HEADERS * sources) throw Refusal.field(field, `at most ${MAX_HEADERS * sources} headers`);
  const checked = new Map<string, string>();
  let bytes = 0;
  for (const [given, value] of entries) {
    const name = given.toLowerCase();
    const refuse = (rule: string): Refusal => Refusal.field(`${field}[${JSON.stringify(given.slice(0, 64))}]`, rule);
    if (!TOKEN.test(given)) throw refuse("the name is not a header name");
    if (isOwned(name)) throw refuse("the header is reserved");
    if (checked.has(name)) throw refuse("the header is given twice, in different case");
    if (!isHeaderValue(value)) throw refuse("the value has characters that a header cannot carry");
    checked.set(name, value.trim());
    bytes += name.length + value.length;
  }
  if (bytes > MAX_BYTES * sources) {
    throw Refusal.field(field, `at most ${MAX_BYTES * sources} bytes of names and values`);
  }
  // A Map first: assigning to a name such as __proto__ on a plain object would lose it.
  return Object.fromEntries(checked);
}

/** Whether text can be sent as the value of a header: latin1 without control characters other than tab. */
export function isHeaderValue(value: string): boolean {
  return VALUE.test(value);
}

function isOwned(name: string): boolean {
  return OWNED.some((owned) => (owned.endsWith("-") ? name.startsWith(owned) : name === owned));
}
