import type { KeyOwner, SealedKey } from "../domain/signing-key.ts";

/** One request to send. */
export interface OutboundPost {
  /** Checked again before it is used, since the policy may have changed since it was stored; what it leads to, at every attempt. */
  readonly url: string;
  /** Sent and signed byte for byte. */
  readonly body: Uint8Array;
  /** The value of content-type, unless `headers` carry one. */
  readonly contentType: string;
  /** What the user wants sent along; the rules are those of `checkHeaders`. */
  readonly headers: Readonly<Record<string, string>>;
  /** What we say about the delivery: `run-id` is sent as the header carillon-run-id. Users cannot set such headers. */
  readonly about: Readonly<Record<string, string>>;
  /** `webhook-id`: the same for every attempt of one delivery. Printable ASCII without dots. */
  readonly id: string;
  /** What signs it, sealed: at least one secret, several while one is being rotated, and key pairs. */
  readonly signers: readonly SealedKey[];
  /** Whose request it is: the values of `headers` that are sealed are sealed for this owner. */
  readonly owner: KeyOwner;
  /**
   * The instant now by a clock that is right whatever this machine's says, for the signature and for Retry-After dates.
   * Default: this machine's.
   */
  readonly at?: Date;
  /** From the name's lookup to the last byte of the answer, in milliseconds. */
  readonly timeoutMs: number;
  /** Gives the attempt up; the outcome is `cancelled` then. */
  readonly signal: AbortSignal;
}
