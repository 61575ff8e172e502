import { type Kysely, sql } from "kysely";

/** Signing keys in a table of their own, sealed; the columns that held secrets as text go. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // The current key of an owner and algorithm has no end; those before it sign until theirs. `sealed` is written by a
  // program that has the key of the vault, which a migration has not: what it moves here says 'plain.', and the next
  // start seals it.
  `create table signing_keys (
     project_id uuid not null,
     owner_id uuid not null,
     key_id uuid not null default carillon_id(),
     algorithm text not null constraint signing_algorithm_known check (algorithm in ('v1', 'v1a')),
     sealed text not null,
     public_key bytea,
     created_at timestamptz not null default carillon_now(),
     valid_until timestamptz,
     primary key (project_id, owner_id, key_id),
     constraint key_pair_is_public check ((algorithm = 'v1a') = (public_key is not null))
   )`,
  `create unique index signing_keys_current_idx on signing_keys (project_id, owner_id, algorithm) where valid_until is null`,
  `create index signing_keys_expiry_idx on signing_keys (valid_until) where valid_until is not null`,
  // By what a value is sealed: 'sealed1.' and the id of the vault's key.
  `create index signing_keys_seal_idx on signing_keys (left(sealed, 16) collate "C")`,

  `insert into signing_keys (project_id, owner_id, algorithm, sealed)
   select project_id, project_id, 'v1', 'plain.' || signing_secret from projects
   union all select project_id, cron_id, 'v1', 'plain.' || secret from cron_jobs where secret is not null
   union all select project_id, task_id, 'v1', 'plain.' || secret from tasks where secret is not null
   union all select project_id, subscription_id, 'v1', 'plain.' || secret from push_subscriptions where secret is not null
   union all select project_id, webhook_id, 'v1', 'plain.' || secret from event_webhooks`,
  `insert into signing_keys (project_id, owner_id, algorithm, sealed, valid_until)
   select project_id, subscription_id, 'v1', 'plain.' || previous_secret, previous_valid_until from push_subscriptions
   where previous_secret is not null and previous_valid_until > carillon_now()`,

  `alter table projects drop column signing_secret`,
  `alter table cron_jobs drop column secret`,
  `alter table tasks drop column secret`,
  `alter table event_webhooks drop column secret`,
  `alter table push_subscriptions drop column secret, drop column previous_secret, drop column previous_valid_until`,
  // Who signs an event that goes to no webhook: the cron job or task that it is about.
  `alter table callbacks drop column secret, add column signer_id uuid`,

  // Keys go with their owner, whatever deletes it.
  `create function carillon_forget_keys() returns trigger language plpgsql as $$
   begin
     execute format('delete from signing_keys k using gone g where k.project_id = g.project_id and k.owner_id = g.%I', tg_argv[0]);
     return null;
   end $$`,
  ...[
    ["cron_jobs", "cron_id"],
    ["tasks", "task_id"],
    ["push_subscriptions", "subscription_id"],
    ["event_webhooks", "webhook_id"],
  ].map(
    ([table, id]) => `create trigger forget_keys after delete on ${table} referencing old table as gone
      for each statement execute function carillon_forget_keys('${id}')`,
  ),
];
