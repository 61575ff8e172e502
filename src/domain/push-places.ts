/** What a node has under way, as far as the places of one subscription depend on it. */
export interface PushLoad {
  /** How many more requests may start to endpoints that do as well as the subscription's. */
  readonly free: number;
  /** Requests under way to its endpoint, and most at a time. */
  readonly toEndpoint: number;
  readonly window: number;
  /** Requests under way of the subscription itself, and its max_concurrency, null for none. */
  readonly own: number;
  readonly ownLimit: number | null;
}

/** How many times the free places one endpoint may hold. With one alone, a quarter of all stays free for others. */
const SHARE = 3;

/** How many more requests may be made to a subscription: the fewer places are free, the fewer any endpoint may hold. */
export function placesFor({ free, toEndpoint, window, own, ownLimit }: PushLoad): number {
  const atLeast = toEndpoint === 0 ? Math.min(1, free) : 0;
  const fair = Math.max(Math.floor((SHARE * free - toEndpoint) / (SHARE + 1)), atLeast);
  return Math.max(0, Math.min(fair, window - toEndpoint, (ownLimit ?? Number.POSITIVE_INFINITY) - own));
}

/** The items, always one next that is of a project with the least under way; of one project in their order. */
export function* leastBusyFirst<Item>(items: readonly Item[], busyOf: (item: Item) => number): Generator<Item> {
  const left = [...items];
  while (left.length > 0) {
    const busy = left.map(busyOf);
    yield* left.splice(busy.indexOf(Math.min(...busy)), 1);
  }
}
