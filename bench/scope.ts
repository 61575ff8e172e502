import { openBullmq } from "./contestants/bullmq.ts";
import type { Contestant } from "./contestants/contestant.ts";
import { openGraphileWorker } from "./contestants/graphile-worker.ts";
import { openPgBoss } from "./contestants/pg-boss.ts";
import { openRabbitmq } from "./contestants/rabbitmq.ts";
import type { BenchDatabase, DatabaseServer } from "./database.ts";
import type { Measures } from "./measure.ts";
import { type CarillonNode, type Handlers, startCarillonNode } from "./servers/carillon.ts";
import { type RabbitmqServer, startRabbitmq } from "./servers/rabbitmq.ts";
import { type AppendFsync, type RedisServer, startRedis } from "./servers/redis.ts";
import type { Settings } from "./settings.ts";
import { profileStatements } from "./statements.ts";
import type { Rounds, Verdict } from "./verdict.ts";

/** One thing that is measured, by itself and against peers. */
export interface Scenario {
  readonly name: string;
  /** What it measures, in a line. */
  readonly about: string;
  run(scope: Scope): Promise<{ readonly rounds: Rounds; readonly verdicts: readonly Verdict[] }>;
}

/** A contestant's turn. */
export interface Entry {
  readonly name: string;
  readonly measure: () => Promise<Measures>;
}

export type PeerName = (typeof PEERS)[number];

const PEERS = ["graphile-worker", "pg-boss", "RabbitMQ quorum", "BullMQ, AOF always", "BullMQ, AOF everysec"] as const;

/** A peer, and its database where it uses PostgreSQL. */
export interface Peer {
  readonly contestant: Contestant;
  readonly database: BenchDatabase | undefined;
}

/** A node and its database, which nothing else uses. */
export interface NodeOnDatabase {
  readonly node: CarillonNode;
  readonly database: BenchDatabase;
}

/** What a scenario works with. Everything that it starts ends with it. */
export class Scope implements AsyncDisposable {
  readonly settings: Settings;
  readonly databaseServer: DatabaseServer;
  readonly #brokers: Brokers;
  readonly #owned = new AsyncDisposableStack();

  constructor(settings: Settings, databaseServer: DatabaseServer, brokers: Brokers) {
    this.settings = settings;
    this.databaseServer = databaseServer;
    this.#brokers = brokers;
  }

  use<T extends AsyncDisposable>(resource: T): T {
    return this.#owned.use(resource);
  }

  async createDatabase(name: string): Promise<BenchDatabase> {
    return this.use(await this.databaseServer.createDatabase(name));
  }

  /** A node on a database of its own. */
  async startCarillon(handlers?: Handlers): Promise<NodeOnDatabase> {
    const database = await this.createDatabase("carillon");
    if (this.settings.profile !== undefined) this.use(await profileStatements(database, this.settings.profile));
    return { node: await this.startNode(database, handlers), database };
  }

  /** One more node on a database. */
  async startNode(database: BenchDatabase, handlers?: Handlers): Promise<CarillonNode> {
    return this.use(await startCarillonNode(database.url, { handlers, profileDir: this.settings.profile }));
  }

  /** Those of the peers that can run here, each on a database of its own. Default: all. */
  async openPeers(names: readonly PeerName[] = PEERS): Promise<Peer[]> {
    if (!this.settings.peers) return [];
    const peers: Peer[] = [];
    for (const name of names) {
      const peer = await this.#openPeer(name);
      if (peer !== undefined) peers.push({ ...peer, contestant: this.use(peer.contestant) });
    }
    return peers;
  }

  /** Gives the entries their turns, A B C A B C …. */
  async alternate(entries: readonly Entry[]): Promise<Record<string, Measures[]>> {
    const rounds: Record<string, Measures[]> = {};
    for (let round = 1; round <= this.settings.rounds; round++) {
      for (const { name, measure } of entries) {
        const measures = await measure();
        rounds[name] = [...(rounds[name] ?? []), measures];
        const figures = Object.entries(measures).map(([figure, value]) => `${figure} ${value.toPrecision(4)}`);
        process.stderr.write(`  round ${round}  ${name.padEnd(28)} ${figures.join("  ")}\n`);
      }
    }
    return rounds;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#owned.disposeAsync();
  }

  async #openPeer(name: PeerName): Promise<Peer | undefined> {
    switch (name) {
      case "graphile-worker": {
        const database = await this.createDatabase(name);
        return { contestant: await openGraphileWorker(database), database };
      }
      case "pg-boss": {
        const database = await this.createDatabase(name);
        return { contestant: await openPgBoss(database), database };
      }
      case "RabbitMQ quorum": {
        const rabbitmq = await this.#brokers.rabbitmq();
        return rabbitmq && { contestant: await openRabbitmq(rabbitmq), database: undefined };
      }
      case "BullMQ, AOF always":
      case "BullMQ, AOF everysec": {
        const fsync = name === "BullMQ, AOF always" ? "always" : "everysec";
        const redis = await this.#brokers.redis(fsync);
        return redis && { contestant: await openBullmq(redis, fsync), database: undefined };
      }
    }
  }
}

/** The servers of peers that bring their own. Each is started when it is first needed, and says so once if it is not there. */
export class Brokers implements AsyncDisposable {
  readonly #owned = new AsyncDisposableStack();
  readonly #started = new Map<string, Promise<AsyncDisposable | undefined>>();

  rabbitmq(): Promise<RabbitmqServer | undefined> {
    return this.#once("rabbitmq-server", startRabbitmq);
  }

  redis(appendFsync: AppendFsync): Promise<RedisServer | undefined> {
    return this.#once("redis-server", () => startRedis(appendFsync), appendFsync);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#owned.disposeAsync();
  }

  #once<T extends AsyncDisposable>(
    program: string,
    start: () => Promise<T | undefined>,
    variant = "",
  ): Promise<T | undefined> {
    const key = `${program} ${variant}`;
    const started = this.#started.get(key) ?? this.#start(program, start);
    this.#started.set(key, started);
    return started as Promise<T | undefined>;
  }

  async #start(program: string, start: () => Promise<AsyncDisposable | undefined>) {
    const server = await start();
    if (server === undefined) process.stderr.write(`bench: skipped what needs ${program}: it is not installed\n`);
    else this.#owned.use(server);
    return server;
  }
}
