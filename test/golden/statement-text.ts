/** A statement without the indent that it has in the source. */
export function dedent(statement: string): string {
  const lines = statement.split("\n").filter((line) => line.trim() !== "");
  const indents = lines.slice(1).map((line) => line.length - line.trimStart().length);
  const depth = Math.min(...indents, Number.MAX_SAFE_INTEGER);
  return [lines[0]?.trim(), ...lines.slice(1).map((line) => line.slice(depth).trimEnd())].filter(Boolean).join("\n");
}
