/** Something that is due and goes to an endpoint of a project. */
export interface Candidate {
  readonly projectId: string;
  readonly endpointId: string;
  /** The endpoint takes nothing now: disabled, open, paused, or out of room. */
  readonly blocked: boolean;
}

/**
 * What a node knows of an endpoint from its own requests. Proven: the newest answer was a success and came soon. Slow: it
 * failed, or a request to it takes long. New: neither is known.
 */
export type Standing = "new" | "proven" | "slow";

/** What is under way to an endpoint. */
export interface Load {
  readonly standing: Standing;
  readonly inFlight: number;
  /** Most requests to it at a time. */
  readonly window: number;
}

/**
 * How many more requests may start. New endpoints have a part of the room of proven ones, so that however many of them
 * hang, the proven ones go on. Slow ones have room of their own.
 */
export type Room = Readonly<Record<Standing, number>>;

/** Who of the candidates goes. */
export interface Shares<C extends Candidate> {
  readonly chosen: readonly C[];
  readonly blocked: readonly C[];
  /** Their endpoint has as many requests under way as it may, and there is room for those of others. */
  readonly full: readonly C[];
  /** What there was too little room for: the standings of the endpoints of all others. */
  readonly scarce: ReadonlySet<Standing>;
}

interface Lane<C> {
  readonly waiting: C[];
  readonly load: Load;
  next: number;
}

/**
 * Shares the room among projects, and each project's among its endpoints: the next to go is always of the project with the
 * least under way, and of its endpoint with the least. Of one endpoint they go in the order of `candidates`.
 *
 * @param busyOf how many requests of a project are under way.
 */
export function share<C extends Candidate>(
  candidates: readonly C[],
  loadOf: (candidate: C) => Load,
  busyOf: (projectId: string) => number,
  room: Room,
): Shares<C> {
  const blocked = candidates.filter((candidate) => candidate.blocked);
  const projects = new Map<string, { busy: number; readonly lanes: Map<string, Lane<C>> }>();
  for (const candidate of candidates) {
    if (candidate.blocked) continue;
    const { projectId, endpointId } = candidate;
    const project = projects.get(projectId) ?? { busy: busyOf(projectId), lanes: new Map<string, Lane<C>>() };
    projects.set(projectId, project);
    const lane = project.lanes.get(endpointId);
    if (lane === undefined) project.lanes.set(endpointId, { waiting: [candidate], load: loadOf(candidate), next: 0 });
    else lane.waiting.push(candidate);
  }

  const left: Record<Standing, number> = { ...room };
  const mayGo = ({ waiting, load, next }: Lane<C>): boolean =>
    next < waiting.length && load.inFlight + next < load.window && left[load.standing] > 0;
  const chosen: C[] = [];
  for (;;) {
    let best: { readonly lane: Lane<C>; readonly busy: number } | undefined;
    let owner: { busy: number } | undefined;
    for (const project of projects.values()) {
      if (best !== undefined && project.busy >= best.busy) continue;
      const lane = leastLoaded(project.lanes.values(), mayGo);
      if (lane === undefined) continue;
      best = { lane, busy: project.busy };
      owner = project;
    }
    if (best === undefined || owner === undefined) break;
    chosen.push(best.lane.waiting[best.lane.next] as C);
    best.lane.next += 1;
    owner.busy += 1;
    const { standing } = best.lane.load;
    left[standing] -= 1;
    // What a new endpoint takes is of the room of the proven ones; these may take it all.
    if (standing === "new") left.proven -= 1;
    if (standing === "proven") left.new = Math.min(left.new, left.proven);
  }
  const full: C[] = [];
  const scarce = new Set<Standing>();
  for (const { waiting, load, next } of [...projects.values()].flatMap(({ lanes }) => [...lanes.values()])) {
    if (next === waiting.length) continue;
    // Where the room has ended as well, it is not the endpoint that others wait for.
    if (left[load.standing] <= 0) scarce.add(load.standing);
    else full.push(...waiting.slice(next));
  }
  return { chosen, blocked, full, scarce };
}

function leastLoaded<C>(lanes: Iterable<Lane<C>>, mayGo: (lane: Lane<C>) => boolean): Lane<C> | undefined {
  let least: Lane<C> | undefined;
  for (const lane of lanes) {
    if (!mayGo(lane)) continue;
    if (least === undefined || lane.load.inFlight + lane.next < least.load.inFlight + least.next) least = lane;
  }
  return least;
}
