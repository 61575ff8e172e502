import { type DescField, getOption, hasOption } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence, FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { rest } from "../../../gen/scheduling/v1/rest_pb.js";
import type { Call } from "../api/contract.ts";
import { type Fields, listOf } from "../api/pages.ts";

/** How a kind of thing is declared, by the words of its calls. What its fields are, the contract says. */
interface Rule {
  /** The key of the file. */
  readonly section: string;
  /** What one is called. */
  readonly noun: string;
  readonly list: string;
  readonly create: string;
  readonly update: string;
  readonly remove: string;
  /** The field that calls name one by. */
  readonly id: string;
  /** The fields that tell two of them apart in a file. */
  readonly identity: readonly string[];
  /** Fields that have calls of their own, by the value that is wanted where they take none. */
  readonly setters?: Readonly<Record<string, string | { readonly true: string; readonly false: string }>>;
  /** A field that is empty where another is in its place. */
  readonly alternative?: string;
  /** Fields of one that say nothing about what was wanted. */
  readonly silent?: (record: Fields) => readonly string[];
  /** What is lost with one. */
  readonly loss: string;
}

/** The fields of cron jobs about what they send, and when. */
const ABOUT_SENDING = [
  "url",
  "queue",
  "group_id",
  "priority",
  "ttl_seconds",
  "payload",
  "content_type",
  "headers",
  "retries",
  "retry_policy",
  "timeout_seconds",
  "overlap_policy",
  "misfire_policy",
  "misfire_window_seconds",
  "spread_seconds",
  "jitter_seconds",
  "expire_after_seconds",
  "pause_after_failures",
];

const RULES: readonly Rule[] = [
  {
    section: "queues",
    noun: "queue",
    list: "queue list",
    create: "queue create",
    update: "queue update",
    remove: "queue delete",
    id: "queue",
    identity: ["queue"],
    loss: "with its messages",
  },
  {
    section: "cron_jobs",
    noun: "cron job",
    list: "cron list",
    create: "cron create",
    update: "cron update",
    remove: "cron delete",
    id: "cron_id",
    identity: ["name"],
    alternative: "url",
    setters: {
      enabled: { true: "cron resume", false: "cron pause" },
      retention_days: "cron retention set",
      secret: "cron rotate_secret",
    },
    // One that has come to its end does not fire, whoever enables it; a monitor sends nothing.
    silent: ({ state, task_type }) => [
      ...(state === "completed" ? ["enabled"] : []),
      ...(task_type === "monitor" ? ABOUT_SENDING : []),
    ],
    loss: "",
  },
  {
    section: "push_subscriptions",
    noun: "push subscription",
    list: "queue push_subscription list",
    create: "queue push_subscribe",
    update: "queue push_subscription update",
    remove: "queue push_subscription delete",
    id: "subscription_id",
    identity: ["queue", "url"],
    setters: { secret: "queue push_subscription rotate_secret" },
    loss: "",
  },
  {
    section: "event_webhooks",
    noun: "event webhook",
    list: "webhook list",
    create: "webhook create",
    update: "webhook update",
    remove: "webhook delete",
    id: "webhook_id",
    identity: ["url"],
    setters: { secret: "webhook rotate_secret" },
    loss: "",
  },
];

/** A field that a file may set. */
export interface Field {
  readonly name: string;
  /** Of the request that creates, or else of the one that updates or sets. */
  readonly desc: DescField;
  readonly spellings: readonly string[];
  /** Whether it can be none, which a file says with null and an answer by leaving it out. */
  readonly nullable: boolean;
  /** Whether it is never answered. A file says the variable of the environment that has it. */
  readonly isSecret: boolean;
  /** Whether the call that creates takes it. */
  readonly inCreate: boolean;
  /** How it is changed; undefined when it cannot be. */
  readonly change: "update" | Setter | undefined;
}

/** A call of its own that changes one field. */
export interface Setter {
  callFor(value: unknown): { readonly call: Call; readonly takesValue: boolean };
}

/** A kind of thing that a file declares. */
export interface Kind extends Pick<Rule, "section" | "noun" | "id" | "identity" | "alternative" | "loss"> {
  readonly list: Call;
  readonly create: Call;
  readonly update: Call;
  readonly remove: Call;
  readonly fields: readonly Field[];
  /** The field for each of its spellings. */
  readonly bySpelling: ReadonlyMap<string, Field>;
  readonly silent: (record: Fields) => readonly string[];
}

/** No wishes about a thing, but about a call. */
const NOT_DECLARED: ReadonlySet<string> = new Set(["idempotency_key"]);

/**
 * The kinds, in the order in which they are created: what others name comes first.
 *
 * @throws Error when the contract has not the calls of a rule.
 */
export function kindsOf(calls: readonly Call[]): readonly Kind[] {
  const byWords = new Map(calls.map((call) => [call.words.join(" "), call]));
  const callAt = (words: string): Call => {
    const call = byWords.get(words);
    if (call === undefined) throw new Error(`the contract has no call ${words}`);
    return call;
  };
  return RULES.map((rule) => {
    const [list, create, update, remove] = [rule.list, rule.create, rule.update, rule.remove].map(callAt) as [
      Call,
      Call,
      Call,
      Call,
    ];
    const shown = new Map(listOf(list)?.desc.fields.map((field) => [field.name, field]));
    const setters = Object.entries(rule.setters ?? {}).map(([name, words]) => [name, setterOf(words, callAt)] as const);
    const settable = new Map<string, DescField>();
    for (const field of [...create.method.input.fields, ...update.method.input.fields]) {
      const isOfTheCall = NOT_DECLARED.has(field.name) || field.message?.typeName === FieldMaskSchema.typeName;
      const isAddress = field.name === rule.id && !rule.identity.includes(rule.id);
      if (!isOfTheCall && !isAddress && !settable.has(field.name)) settable.set(field.name, field);
    }
    for (const [name] of setters) {
      const field = settable.get(name) ?? shown.get(name);
      if (field !== undefined) settable.set(name, field);
    }
    const inOrder = [...shown.keys(), ...settable.keys()].filter((name, at, all) => all.indexOf(name) === at);
    const fields = inOrder.flatMap((name): Field[] => {
      const desc = settable.get(name);
      // What no answer shows cannot be compared, and is declared only where it is a secret.
      if (desc === undefined || !(isSecretName(name) || shown.has(name))) return [];
      const setter = setters.find(([set]) => set === name)?.[1];
      const isUpdated =
        update.method.input.fields.some((field) => field.name === name) && !rule.identity.includes(name);
      return [
        {
          name,
          desc,
          spellings: [name, ...(hasOption(desc, rest) ? getOption(desc, rest).accept : [])],
          nullable: !isSecretName(name) && shown.get(name)?.presence === FeatureSet_FieldPresence.EXPLICIT,
          isSecret: isSecretName(name),
          inCreate: create.method.input.fields.some((field) => field.name === name),
          change: setter ?? (isUpdated ? "update" : undefined),
        },
      ];
    });
    const bySpelling = new Map(fields.flatMap((field) => field.spellings.map((spelling) => [spelling, field])));
    for (const field of fields) bySpelling.set(field.name, field);
    return { ...rule, list, create, update, remove, fields, bySpelling, silent: rule.silent ?? (() => []) };
  });
}

function setterOf(words: string | { true: string; false: string }, callAt: (words: string) => Call): Setter {
  if (typeof words === "string") return { callFor: () => ({ call: callAt(words), takesValue: true }) };
  return { callFor: (value) => ({ call: callAt(value === true ? words.true : words.false), takesValue: false }) };
}

function isSecretName(name: string): boolean {
  return name === "secret";
}
