import { LruCache } from "../domain/lru-cache.ts";
import { headerPlace, keyPlace, type Place, SEALED_HEADER_MARK, type SealedKey } from "../domain/signing-key.ts";
import { checkHeaders, isHeaderValue } from "./headers.ts";
import type { OutboundPost } from "./outbound-post.ts";
import { parseSigningKey, type SigningKey, sign } from "./sign.ts";

/** Where the headers of a request may come from: a message, and the subscription that it is pushed to. */
const HEADER_SOURCES = 2;
/** How many keys that sign are kept open. */
const MAX_KEYS = 1_000;

/**
 * Makes what writes the headers of requests, with the signature, at an instant of Unix time in milliseconds. It throws as
 * `Egress.post` says.
 *
 * @param open opens what is sealed for that place.
 * @param userAgent unless a request's headers say another.
 */
export function createHeaderWriter(
  open: (sealed: string, place: Place) => string,
  userAgent: string,
): (request: OutboundPost, nowMs: number) => Record<string, string> {
  const keys = new LruCache<SigningKey>(MAX_KEYS);

  function keyOf(signer: SealedKey): SigningKey {
    const { algorithm, sealed } = signer;
    const place = keyPlace(signer, algorithm);
    // What is sealed for one place opens nowhere else, so the place is a part of its name.
    return keys.getOrBuild(`${place.join("/")}/${sealed}`, () => parseSigningKey(algorithm, open(sealed, place)));
  }

  return function headersOf(request, nowMs) {
    if (!isHeaderValue(request.contentType)) throw new RangeError("contentType cannot be a header");
    const { id, body, signers, owner } = request;
    const given = Object.entries(request.headers).map(([name, value]): [string, string] =>
      value.startsWith(SEALED_HEADER_MARK)
        ? [name, open(value.slice(SEALED_HEADER_MARK.length), headerPlace(owner, name))]
        : [name, value],
    );
    return {
      "content-type": request.contentType,
      "user-agent": userAgent,
      ...checkHeaders("headers", Object.fromEntries(given), HEADER_SOURCES),
      ...Object.fromEntries(Object.entries(request.about).map(([name, value]) => [`carillon-${name}`, value])),
      // Nothing is decompressed here, so nothing is asked for that would have to be.
      "accept-encoding": "identity",
      ...sign({ id, timestampSeconds: Math.floor(nowMs / 1_000), body, keys: signers.map(keyOf) }),
    };
  };
}
