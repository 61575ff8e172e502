/** The content type of a payload whose caller names none. */
export const JSON_TYPE = "application/json";

/** Whether a content type says JSON. Empty means JSON. */
export function isJsonType(contentType: string): boolean {
  if (contentType === "" || contentType === JSON_TYPE) return true;
  const type = contentType.split(";", 1)[0]?.trim().toLowerCase() ?? "";
  return type === "" || type === JSON_TYPE || type.endsWith("+json");
}
