import type { DescMessage, Message } from "@bufbuild/protobuf";

/**
 * The path of the first text in a message that PostgreSQL cannot store, or undefined. That is text with a NUL, or with
 * half of a surrogate pair, which has no UTF-8 form. `path` leads to the message itself and ends in a dot, or is empty.
 */
export function unstorableText(schema: DescMessage, message: Message, path = ""): string | undefined {
  for (const field of schema.fields) {
    const value = (message as unknown as Record<string, unknown>)[field.localName];
    const name = path + field.name;
    if (typeof value === "string") {
      if (!isStorable(value)) return name;
    } else if (field.fieldKind === "map") {
      for (const [key, entry] of Object.entries(value as Record<string, unknown>)) {
        if (!isStorable(key) || (typeof entry === "string" && !isStorable(entry))) return name;
      }
    } else if (field.fieldKind === "list") {
      for (const [i, item] of (value as unknown[]).entries()) {
        const found =
          field.listKind === "message"
            ? unstorableText(field.message, item as Message, `${name}[${i}].`)
            : typeof item === "string" && !isStorable(item)
              ? `${name}[${i}]`
              : undefined;
        if (found !== undefined) return found;
      }
    } else if (field.fieldKind === "message" && value !== undefined) {
      const found = unstorableText(field.message, value as Message, `${name}.`);
      if (found !== undefined) return found;
    }
  }
  return undefined;
}

/** Whether PostgreSQL can store the text. */
export function isStorable(text: string): boolean {
  return !text.includes("\0") && text.isWellFormed();
}
