import { randomBytes } from "node:crypto";
import { sql } from "kysely";
import { expect, inject, test } from "vitest";
import { connect } from "../../src/db/connect.ts";
import { migrate } from "../../src/db/migrate.ts";

test("the migrations make the schema that the file shows", async () => {
  const server = connect({ url: inject("databaseUrl") });
  const name = `t_${randomBytes(8).toString("hex")}`;
  await sql.raw(`create database ${name}`).execute(server);
  const db = connect({ url: inject("databaseUrl").replace(/^(postgres(?:ql)?:\/\/[^/]*\/)[^?]*/, `$1${name}`) });
  try {
    await migrate(db);
    const { rows } = await sql<{ line: string }>`
      select format('%s.%s %s%s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                    case when a.attnotnull then ' not null' else '' end,
                    coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')) as line
      from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
      where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname not like 'kysely%'
      union all
      select indexdef from pg_indexes where schemaname = 'public' and tablename not like 'kysely%'
      union all
      select format('%s constraint %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) from pg_constraint
      where connamespace = 'public'::regnamespace and contype in ('c', 'f') and conrelid::regclass::text not like 'kysely%'
`.execute(db);
    await expect(`${rows.map((row) => row.line).sort().join("\n")}\n`).toMatchFileSnapshot("schema.txt");
  } finally {
    await db.destroy();
    await sql.raw(`drop database ${name} with (force)`).execute(server);
    await server.destroy();
  }
});
