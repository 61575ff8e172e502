/**
 * A map that holds at most `maxEntries` entries and forgets the least recently used one.
 * Values must be rebuildable from their key: an entry may be gone at any time.
 */
export class LruCache<V> {
  readonly #entries = new Map<string, V>();
  readonly #maxEntries: number;

  /** @param maxEntries at least 1. */
  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
  }

  /** The value of `key`, built by `build` and kept when it is not there. What `build` throws passes through. */
  getOrBuild(key: string, build: () => V): V {
    const known = this.#entries.get(key);
    if (known !== undefined) {
      // A Map keeps insertion order, so moving a used key to the end leaves the least used one in front.
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known;
    }
    const built = build();
    this.#entries.set(key, built);
    if (this.#entries.size > this.#maxEntries) {
      const oldest = this.#entries.keys().next();
      if (!oldest.done) this.#entries.delete(oldest.value);
    }
    return built;
  }
}
