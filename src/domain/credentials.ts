/** What a reader sees instead of a credential. */
export const HIDDEN = "***";

const CREDENTIAL = /^(authorization|cookie)$|token|secret|password|api-?_?key/;

/** Whether a header of that name, in lower case, carries a credential. */
export function isCredential(name: string): boolean {
  return CREDENTIAL.test(name);
}

/** The headers with the values of those that carry credentials hidden. */
export function hideCredentials(headers: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, isCredential(name) ? HIDDEN : value]),
  );
}
