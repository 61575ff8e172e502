import { Refusal } from "../errors.ts";
import { isSecret } from "../webhook/sign.ts";

/** Checks a signing secret that a caller gives; the empty one means that none is given. @throws Refusal FIELD_INVALID */
export function checkSecret(secret: string): void {
  if (secret !== "" && !isSecret(secret)) throw Refusal.field("secret", "after whsec_ must be padded base64");
}
