import { HIDDEN, isCredential } from "../domain/credentials.ts";
import { headerPlace, type KeyOwner, SEALED_HEADER_MARK } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import type { Vault } from "../vault/vault.ts";
import { checkHeaders } from "../webhook/headers.ts";

/**
 * The headers that a caller wants to have sent with the requests of `owner`, checked and with lower-case names, those with
 * credentials sealed: `webhook/` opens them when it sends. A hidden value that was read and is now written back would
 * replace the credential, so it is refused.
 *
 * @throws Refusal FIELD_INVALID
 */
export function headersToStore(
  vault: Vault,
  owner: KeyOwner,
  field: string,
  headers: Readonly<Record<string, string>>,
): Record<string, string> {
  const checked = Object.entries(checkHeaders(field, headers)).map(([name, value]): [string, string] => {
    if (!isCredential(name)) return [name, value];
    if (value === HIDDEN) {
      throw Refusal.field(
        `${field}[${JSON.stringify(name)}]`,
        `${HIDDEN} stands for a hidden value; give the value itself`,
      );
    }
    return [name, SEALED_HEADER_MARK + vault.seal(value, headerPlace(owner, name))];
  });
  return Object.fromEntries(checked);
}
