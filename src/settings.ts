import { inspect } from "node:util";
import { z } from "zod";

/** A value that prints as `***` wherever it lands: in templates, JSON, logs and inspections. */
export class Secret {
  readonly #value: string;

  constructor(value: string) {
    this.#value = value;
  }

  /** The value itself. */
  reveal(): string {
    return this.#value;
  }

  toString(): string {
    return "***";
  }

  toJSON(): string {
    return "***";
  }

  [inspect.custom](): string {
    return "***";
  }
}

/** One setting, from which the reader of the environment, the documentation and the messages are made. */
export interface Setting<T> {
  readonly env: string;
  /** An older or customary variable that counts where `env` is not set. */
  readonly alias?: string;
  /** The value when neither is set, as it would be written; undefined for none. */
  readonly fallback: string | undefined;
  /** What stands in for the value when there is none, in words. */
  readonly unsetMeans?: string;
  /** What a value must be: the end of the sentence "must be …". */
  readonly rule: string;
  readonly about: string;
  readonly isSecret: boolean;
  readonly schema: z.ZodType<T>;
}

interface Kind<T> {
  readonly rule: string;
  readonly schema: z.ZodType<T>;
  readonly isSecret?: true;
}

function setting<T>(env: string, kind: Kind<T>, rest: Pick<Setting<T>, "about" | "alias" | "unsetMeans">) {
  return { env, fallback: undefined, isSecret: kind.isSecret ?? false, ...kind, ...rest } as Setting<T> & {
    readonly fallback: undefined;
  };
}

function withDefault<T>(env: string, kind: Kind<T>, fallback: string, about: string) {
  return { env, fallback, isSecret: kind.isSecret ?? false, ...kind, about } as Setting<T> & {
    readonly fallback: string;
  };
}

function integer(min: number, max: number, unit = ""): Kind<number> {
  const schema = z.string().regex(/^\d+$/).transform(Number).pipe(z.number().min(min).max(max));
  return { rule: `a whole number${unit && ` of ${unit}`} from ${min} to ${max}`, schema };
}

function oneOf<const T extends string>(...values: readonly [T, ...T[]]): Kind<T> {
  return { rule: `one of ${values.join(", ")}`, schema: z.enum(values) };
}

const onOff: Kind<boolean> = {
  rule: "on or off",
  schema: z.stringbool({ truthy: ["on", "true", "yes", "1"], falsy: ["off", "false", "no", "0"] }),
};

function text(rule: string, pattern: RegExp): Kind<string> {
  return { rule, schema: z.string().regex(pattern) };
}

const databaseUrl: Kind<Secret> = {
  rule: "a URL such as postgres://user:password@host:5432/database",
  schema: z
    .string()
    .refine((value) => /^postgres(ql)?:\/\//.test(value) && URL.canParse(value))
    .transform((value) => new Secret(value)),
  isSecret: true,
};

/** The longest API key, in characters. Longer ones are refused unread. */
const MAX_API_KEY = 4_096;

const apiKey: Kind<Secret> = {
  rule: `1 to ${MAX_API_KEY} printable ASCII characters without spaces`,
  schema: z
    .string()
    .regex(/^[\x21-\x7e]+$/)
    .max(MAX_API_KEY)
    .transform((value) => new Secret(value)),
  isSecret: true,
};

const secretsKeys: Kind<Secret> = {
  rule: "one or more keys of 32 bytes in base64, between commas",
  schema: z
    .string()
    .regex(/^[\s,]*[A-Za-z0-9+/]{43}=([\s,]+[A-Za-z0-9+/]{43}=)*[\s,]*$/)
    .transform((value) => new Secret(value)),
  isSecret: true,
};

const origins: Kind<readonly string[]> = {
  rule: "origins between commas, each scheme, host and port only, such as https://console.example.com",
  schema: z
    .string()
    .transform((value) => value.split(",").map((origin) => origin.trim()))
    .pipe(z.array(z.string().refine((origin) => URL.parse(origin)?.origin === origin))),
};

const anyText = text("text", /^[^\0]+$/);

/** Every setting. The key is the property of Config. */
export const SETTINGS = {
  host: withDefault(
    "CARILLON_HOST",
    text("an address or host name of this machine", /^[A-Za-z0-9._:%-]+$/),
    "127.0.0.1",
    "The address to listen on. 0.0.0.0 means all; development mode listens on loopback only.",
  ),
  port: withDefault(
    "CARILLON_PORT",
    integer(0, 65_535),
    "7070",
    "The one port, for gRPC, gRPC-Web, Connect and REST. 0 takes any free port.",
  ),
  dataDir: setting("CARILLON_DATA_DIR", text("a path", /^[^\0]+$/), {
    about: "Where the embedded PostgreSQL keeps its data. Not used with a database URL.",
    unsetMeans: "a directory for each user, which the start prints",
  }),
  databaseUrl: setting("CARILLON_DATABASE_URL", databaseUrl, {
    alias: "DATABASE_URL",
    about: "The PostgreSQL (15 or newer) to use. `carillon serve` needs it.",
    unsetMeans: "the embedded PostgreSQL, in development mode",
  }),
  apiKey: setting("CARILLON_API_KEY", apiKey, {
    about:
      "The key of development mode; any opaque string. Production ignores it: make keys with `carillon keys create`.",
    unsetMeans: "a key that is made at the first start and kept with the data",
  }),
  secretsKey: setting("CARILLON_SECRETS_KEY", secretsKeys, {
    about:
      "Seals the secrets in the database (AES-256-GCM); `openssl rand -base64 32` makes one. The first seals, all of them " +
      "open: to replace a key, put the new one in front, run `carillon secrets reencrypt`, and take the old one away.",
    unsetMeans: "CARILLON_SECRETS_KEY_FILE; in development mode a key that is made at the first start",
  }),
  secretsKeyFile: setting("CARILLON_SECRETS_KEY_FILE", anyText, {
    about: "File with what CARILLON_SECRETS_KEY would hold, the keys on lines of their own.",
    unsetMeans: "none",
  }),
  allowTargets: withDefault(
    "CARILLON_ALLOW_TARGETS",
    text("networks and host:port pairs between commas", /^[^\0]*$/),
    "",
    "Private targets that requests may go to: networks such as 10.1.0.0/16 or 10.1.2.3:8080, and host:port pairs such as " +
      "hooks.internal:443, between commas. Metadata and link-local addresses cannot be opened.",
  ),
  nat64Prefixes: withDefault(
    "CARILLON_NAT64_PREFIXES",
    text("IPv6 networks between commas", /^[^\0]*$/),
    "",
    "Prefixes of your network's NAT64 gateways, such as 2001:db8:64::/96, between commas: targets behind them are judged by " +
      "the IPv4 address that they lead to. The well-known 64:ff9b::/96 always is.",
  ),
  allowHttpTargets: withDefault(
    "CARILLON_ALLOW_HTTP_TARGETS",
    onOff,
    "off",
    "Whether requests may go to public targets over plain http.",
  ),
  tlsCertFile: setting("CARILLON_TLS_CERT_FILE", anyText, {
    about: "PEM file with the certificate and its chain. With CARILLON_TLS_KEY_FILE the port speaks TLS.",
    unsetMeans: "cleartext",
  }),
  tlsKeyFile: setting("CARILLON_TLS_KEY_FILE", anyText, {
    about: "PEM file with the certificate's private key.",
    unsetMeans: "cleartext",
  }),
  corsOrigins: setting("CARILLON_CORS_ORIGINS", origins, {
    about: "Origins whose web pages may call, between commas. Development mode allows loopback pages as well.",
    unsetMeans: "none",
  }),
  role: withDefault(
    "CARILLON_ROLE",
    oneOf("all", "api", "worker"),
    "all",
    "What this node does: serve calls (api), fire and deliver (worker), or both. A worker's port answers health only.",
  ),
  dispatchConcurrency: withDefault(
    "CARILLON_DISPATCH_CONCURRENCY",
    integer(1, 1_000),
    "200",
    "Most outbound requests of this node at a time, for runs and for pushes each. Those that take longer than half a " +
      "second count apart: there may be eight times as many.",
  ),
  deliveryLogDays: withDefault(
    "CARILLON_DELIVERY_LOG_DAYS",
    integer(1, 3_650, "days"),
    "30",
    "How long the record of an outbound request is kept: its headers, answer and timings. No longer than its run.",
  ),
  virtualClock: withDefault(
    "CARILLON_VIRTUAL_CLOCK",
    onOff,
    "off",
    "Whether the server's clock stands still until a call moves it. Development mode only, with a database of its own; " +
      "`carillon dev --virtual-clock` sets it.",
  ),
  maxPayloadBytes: withDefault(
    "CARILLON_MAX_PAYLOAD_BYTES",
    integer(1_024, 10_485_760, "bytes"),
    "1048576",
    "Largest payload of a message, cron job or task. The limit of a whole request follows from it.",
  ),
  idempotencyTtlSeconds: withDefault(
    "CARILLON_IDEMPOTENCY_TTL_SECONDS",
    integer(60, 604_800, "seconds"),
    "86400",
    "How long an idempotency key is remembered.",
  ),
  autoCreateQueues: withDefault(
    "CARILLON_AUTO_CREATE_QUEUES",
    onOff,
    "on",
    "Whether publishing to an unknown queue creates it.",
  ),
  databasePoolSize: withDefault(
    "CARILLON_DATABASE_POOL_SIZE",
    integer(2, 500),
    "20",
    "Most database connections of this node, beside one for wake-ups.",
  ),
  preparedStatements: withDefault(
    "CARILLON_DATABASE_PREPARED_STATEMENTS",
    onOff,
    "on",
    "Off where a pooler in transaction mode, which keeps no prepared statements, stands before the database.",
  ),
  shutdownGraceSeconds: withDefault(
    "CARILLON_SHUTDOWN_GRACE_SECONDS",
    integer(0, 3_600, "seconds"),
    "25",
    "How long SIGTERM waits for running calls and deliveries. Keep it under what your orchestrator allows.",
  ),
  logLevel: withDefault(
    "CARILLON_LOG_LEVEL",
    oneOf("trace", "debug", "info", "warn", "error", "fatal", "silent"),
    "info",
    "The least severe level that is logged.",
  ),
  logFormat: withDefault(
    "CARILLON_LOG_FORMAT",
    oneOf("auto", "json", "pretty"),
    "auto",
    "One JSON object a line, or text for people. auto is text on a terminal in development mode, else JSON.",
  ),
} as const satisfies Record<string, Setting<unknown>>;

export type SettingName = keyof typeof SETTINGS;
