import type { HandlerContext } from "@connectrpc/connect";
import { hashApiKey, isMistyped } from "../domain/api-key.ts";
import { Refusal } from "../errors.ts";
import { type Principal, principalKey } from "./context.ts";
import { toConnectError } from "./refusal.ts";

export interface KeyGateOptions {
  /** The caller that a key with this hash makes, or undefined when there is no such key. */
  readonly findPrincipal: (keyHash: Buffer) => Promise<Principal | undefined>;
  /** Services that need no key, by full name. */
  readonly openServices: ReadonlySet<string>;
  /** A key that counts although it may look mistyped: that of development mode. */
  readonly developmentKey?: string | undefined;
  /** Told when the keys could not be looked up. */
  readonly onFault?: (error: unknown) => void;
  /** A clock that never goes back, in milliseconds. */
  readonly now?: () => number;
}

/** How long an answer about a key is remembered, in milliseconds, and so how late a revocation may be seen. */
const REMEMBER_MS = 5_000;
/** Most keys that are remembered, and as many that are known not to exist. */
const MAX_REMEMBERED = 10_000;
/** Most keys that are looked up at a time. Unknown keys cost a query each, so a flood of them must not fill the pool's queue. */
const MAX_LOOKUPS = 100;
/** Longest wait for the database. */
const LOOKUP_MS = 5_000;
/** Longest Authorization header. */
const MAX_HEADER = 4_096;

/**
 * The check that runs before a request's body is read, in every protocol: it refuses calls without a valid API key, and
 * leaves the caller's principal where the handlers find it.
 *
 * A revoked key is refused 5 seconds after the revocation at the latest, a new one is accepted at once or, where it was
 * tried before it existed, within 5 seconds.
 */
export function keyGate(options: KeyGateOptions): (ctx: HandlerContext) => Promise<void> {
  const principals = new RememberedPrincipals(options);

  return async (ctx) => {
    if (options.openServices.has(ctx.service.typeName)) return;
    try {
      const key = bearerKey(ctx.requestHeader.get("authorization"));
      const keyHash = hashApiKey(key);
      let principal = principals.remembered(keyHash);
      if (principal === undefined) {
        if (isMistyped(key) && key !== options.developmentKey) throw new Refusal("API_KEY_INVALID");
        principal = await principals.find(keyHash);
      }
      if (principal === undefined) throw new Refusal("API_KEY_INVALID");
      ctx.values.set(principalKey, principal);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.code === "unauthenticated") ctx.responseHeader.set("www-authenticate", 'Bearer realm="carillon"');
      throw toConnectError(error);
    }
  };
}

/** @throws Refusal API_KEY_MISSING or AUTHORIZATION_INVALID. */
function bearerKey(header: string | null): string {
  if (header === null || header.trim() === "") throw new Refusal("API_KEY_MISSING");
  if (header.length > MAX_HEADER) throw invalid(`it is longer than ${MAX_HEADER} characters`);
  const [scheme = "", ...rest] = header.trim().split(/[ \t]+/);
  if (scheme.toLowerCase() !== "bearer") throw invalid("its scheme is not Bearer");
  const [key, ...more] = rest;
  if (key === undefined) throw invalid("there is no key after Bearer");
  // Several headers of this name arrive as one, joined by commas.
  if (more.length > 0) throw invalid("there is more than one key in it");
  if (!/^[\x21-\x7e]+$/.test(key)) throw invalid("the key has characters that no key has");
  return key;
}

function invalid(detail: string): Refusal {
  return new Refusal("AUTHORIZATION_INVALID", { detail });
}

interface Remembered {
  readonly principal: Principal | undefined;
  readonly until: number;
}

/** Principals by key hash, looked up once for all calls that ask at the same time. */
class RememberedPrincipals {
  readonly #known = new Map<string, Remembered>();
  /** Apart from the known keys, so that made-up keys push no real one out. */
  readonly #unknown = new Map<string, Remembered>();
  readonly #pending = new Map<string, Promise<Principal | undefined>>();
  readonly #options: KeyGateOptions;
  readonly #now: () => number;

  constructor(options: KeyGateOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** The principal of a key that was looked up a moment ago. */
  remembered(keyHash: Buffer): Principal | undefined {
    const remembered = this.#known.get(keyHash.toString("base64"));
    return remembered !== undefined && this.#now() < remembered.until ? remembered.principal : undefined;
  }

  async find(keyHash: Buffer): Promise<Principal | undefined> {
    const id = keyHash.toString("base64");
    const remembered = this.#known.get(id) ?? this.#unknown.get(id);
    if (remembered !== undefined && this.#now() < remembered.until) return remembered.principal;

    const pending = this.#pending.get(id);
    if (pending !== undefined) return pending;
    if (this.#pending.size >= MAX_LOOKUPS) throw new Refusal("KEY_LOOKUPS_BUSY");
    const lookup = this.#lookUp(id, keyHash).finally(() => this.#pending.delete(id));
    this.#pending.set(id, lookup);
    return lookup;
  }

  async #lookUp(id: string, keyHash: Buffer): Promise<Principal | undefined> {
    // Counted from before the query, so that what it reads is never older than this.
    const until = this.#now() + REMEMBER_MS;
    let principal: Principal | undefined;
    try {
      principal = await inTime(this.#options.findPrincipal(keyHash));
    } catch (error) {
      this.#options.onFault?.(error);
      throw new Refusal("DATABASE_UNAVAILABLE", {}, { cause: error });
    }
    this.#known.delete(id);
    this.#unknown.delete(id);
    const map = principal === undefined ? this.#unknown : this.#known;
    map.set(id, { principal, until });
    if (map.size > MAX_REMEMBERED) {
      const oldest = map.keys().next();
      if (!oldest.done) map.delete(oldest.value);
    }
    return principal;
  }
}

async function inTime<T>(promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`the key was not looked up within ${LOOKUP_MS} ms`)), LOOKUP_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
