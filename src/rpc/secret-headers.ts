import { Refusal } from "../errors.ts";
import { checkHeaders } from "../webhook/headers.ts";

/** What a reader sees instead of a credential. */
const HIDDEN = "***";
const CREDENTIAL = /^(authorization|cookie)$|token|secret|password|api-?_?key/;

/** The headers with the values of those that carry credentials hidden. */
export function hideCredentials(headers: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, CREDENTIAL.test(name) ? HIDDEN : value]),
  );
}

/**
 * The headers that a caller wants to have sent, checked and with lower-case names. A hidden value that was read and is
 * now written back would replace the credential, so it is refused.
 *
 * @throws Refusal FIELD_INVALID
 */
export function headersToStore(field: string, headers: Readonly<Record<string, string>>): Record<string, string> {
  const checked = checkHeaders(field, headers);
  for (const [name, value] of Object.entries(checked)) {
    if (value === HIDDEN && CREDENTIAL.test(name)) {
      throw Refusal.field(
        `${field}[${JSON.stringify(name)}]`,
        `${HIDDEN} stands for a hidden value; give the value itself`,
      );
    }
  }
  return checked;
}
