/** What was made for the keys that were asked for most recently, so that it is made once for each while it is in use. */
export class Recent<Value> {
  readonly #most: number;
  /** In the order in which they were asked for. */
  readonly #made = new Map<string, Value>();

  /** @param most how many are kept. */
  constructor(most: number) {
    this.#most = most;
  }

  /** What was made for the key, or else what `make` makes for it. What `make` throws is thrown, and nothing is kept then. */
  of(key: string, make: () => Value): Value {
    const made = this.#made.get(key) ?? make();
    this.#made.delete(key);
    this.#made.set(key, made);
    if (this.#made.size > this.#most) this.#made.delete(this.#made.keys().next().value ?? key);
    return made;
  }
}
