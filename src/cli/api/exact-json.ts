/** A number whose digits a double would change, as JSON.parse and JSON.stringify know it. */
interface RawNumber {
  readonly rawJSON: string;
}

/** What the library's types do not have yet. */
const exactJson = JSON as unknown as {
  rawJSON(text: string): RawNumber;
  parse(text: string, revive: (key: string, value: unknown, context: { source: string }) => unknown): unknown;
};

/**
 * Parses JSON without changing a digit: JSON.stringify gives each number as it was written. A number that a double
 * cannot show so is kept as an object that only JSON.stringify reads.
 *
 * @throws SyntaxError
 */
export function parseExactly(text: string): unknown {
  return exactJson.parse(text, (_, value, { source }) =>
    typeof value === "number" && JSON.stringify(value) !== source ? exactJson.rawJSON(source) : value,
  );
}

/** Whether the text is JSON. */
export function isJsonText(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
