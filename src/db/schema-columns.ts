import type { ColumnType, JSONColumnType } from "kysely";
import type { Backoff } from "../domain/backoff.ts";

/** How far apart failed attempts are made again. Null: the default. */
export type StoredBackoff = ColumnType<Backoff | null, string | null | undefined, string | null>;
export type Headers = JSONColumnType<Record<string, string>>;
export type Labels = ColumnType<Record<string, string>, string | undefined, string>;
export type NullableHeaders = ColumnType<Record<string, string> | null, string | null | undefined, string | null>;
/** An instant that the database fills in and nobody changes. */
export type Stamp = ColumnType<Date, Date | undefined, never>;
