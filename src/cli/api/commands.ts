import { type Command, InvalidArgumentError, Option } from "commander";
import { CommandError, EXIT } from "../failure.ts";
import { type Arguments, type Connection, callStream, callUnary } from "./client.ts";
import { type ConnectionValues, connectionFrom, connectionOptions } from "./connection.ts";
import { type Call, loadCalls, loadComments } from "./contract.ts";
import { addFieldOptions, kebab } from "./options.ts";
import { callPages, listOf } from "./pages.ts";
import { asJson, asTable } from "./show.ts";

/** Most items that `--all` gathers where `--max-items` does not say. */
const DEFAULT_MAX_ITEMS = 10_000;

interface ShowValues {
  readonly output?: "json" | "table";
  readonly all?: true;
  readonly maxItems?: number;
}

/**
 * Adds a command for every call of the contract: its words are those of the call's path, what varies in the path are
 * arguments, all other fields are options.
 *
 * @param run ends the process as every command does.
 */
export async function addApiCommands(
  program: Command,
  run: (command: () => Promise<number>) => Promise<void>,
): Promise<void> {
  const comments = loadComments();
  const groups = new Set<Command>();
  for (const call of await loadCalls()) {
    const { method } = call;
    const command = commandAt(program, groups, call, comments);
    const about = (comments[`${method.parent.typeName}.${method.name}`] ?? "").replace(`${method.name} `, "");
    command.description(sentenceCase(about)).summary(firstSentence(about));
    for (const field of call.inPath) {
      command.argument(`<${field.name}>`, comments[`${field.parent.typeName}.${field.name}`] ?? "");
    }
    const readFields = addFieldOptions(command, call, comments);
    // A field may be called like one of these: the option is then the field's, and the other goes before the command.
    const taken = new Set(command.options.map(({ long }) => long));
    const own = [...connectionOptions(), ...showOptions(call)].filter(({ long }) => !taken.has(long));
    for (const option of own) command.addOption(option);

    command.action(() =>
      run(async () => {
        const local = command.opts();
        const mine = own.flatMap((option) => {
          const value = local[option.attributeName()];
          return value === undefined ? [] : [[option.attributeName(), value]];
        });
        const said: ConnectionValues & ShowValues = { ...program.opts(), ...Object.fromEntries(mine) };
        const connection = connectionFrom(said);
        const inPath = command.args;
        if (inPath.some((value) => /^\.{0,2}$/.test(value))) {
          throw new CommandError('an argument must not be empty, "." or ".."', { exitCode: EXIT.usage });
        }
        const args = { inPath, fields: await readFields(local) };
        return call.isStream ? stream(connection, call, args) : show(connection, call, args, said);
      }),
    );
  }
}

/**
 * The command of a call, below those of the words before its last.
 *
 * @throws Error when one of the program's own commands has its first word.
 */
function commandAt(
  program: Command,
  groups: Set<Command>,
  call: Call,
  comments: Readonly<Record<string, string>>,
): Command {
  return call.words.reduce((parent, word, index) => {
    const name = kebab(word);
    const existing = parent.commands.find((command) => command.name() === name);
    if (existing !== undefined && (index > 0 || groups.has(existing))) return existing;
    if (existing !== undefined) throw new Error(`${call.method}: the program has a command ${name}`);
    const command = parent.command(name);
    if (name !== word) command.alias(word);
    const isGroup = index < call.words.length - 1;
    if (isGroup) command.description(index === 0 ? firstSentence(comments[call.method.parent.typeName] ?? "") : "");
    if (index === 0) groups.add(command);
    return command;
  }, program);
}

function showOptions(call: Call): Option[] {
  if (call.isStream) return [];
  const output = new Option("--output <format>", "json, or a table for people").choices(["json", "table"]);
  if (!hasPages(call)) return [output];
  return [
    output,
    new Option("--all", "follow next_cursor to the end"),
    new Option("--max-items <n>", `most items that --all gathers (default: ${DEFAULT_MAX_ITEMS})`).argParser(
      wholeNumber,
    ),
  ];
}

function hasPages(call: Call): boolean {
  const { input, output } = call.method;
  return input.fields.some(({ name }) => name === "cursor") && output.fields.some(({ name }) => name === "next_cursor");
}

async function show(connection: Connection, call: Call, args: Arguments, values: ShowValues): Promise<number> {
  const text = values.all
    ? await allPages(connection, call, args, values.maxItems ?? DEFAULT_MAX_ITEMS)
    : await callUnary(connection, call, args);
  console.log(values.output === "table" ? asTable(call, text) : asJson(text, process.stdout.isTTY));
  return EXIT.ok;
}

/** The pages of a list as one. Past `maxItems` it stops, and what it gives has the cursor to go on with. */
async function allPages(connection: Connection, call: Call, args: Arguments, maxItems: number): Promise<string> {
  const { items, cursor } = await callPages(connection, call, args, maxItems);
  const name = listOf(call)?.name ?? "items";
  if (cursor === undefined) return JSON.stringify({ [name]: items });
  console.error(`carillon: stopped at ${items.length} items: go on with --cursor, or allow more with --max-items`);
  return JSON.stringify({ [name]: items, next_cursor: cursor });
}

/** Prints a line of JSON for each answer of a stream until it ends, or until Ctrl-C, which is no failure. */
async function stream(connection: Connection, call: Call, args: Arguments): Promise<number> {
  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  process.once("SIGTERM", () => stop.abort());
  for await (const line of callStream(connection, call, args, stop.signal)) {
    if (!isHeartbeat(line)) console.log(line);
  }
  return EXIT.ok;
}

/** Whether an answer of a stream says nothing, and only that the stream lives. */
function isHeartbeat(line: string): boolean {
  return Object.values(JSON.parse(line)).every((value) => Array.isArray(value) && value.length === 0);
}

function firstSentence(text: string): string {
  const [sentence = ""] = /^.*?(?=\.(\s|$)|:\s|$)/s.exec(text) ?? [];
  return sentence.replace(/^\w+Service /, "");
}

function sentenceCase(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text) || Number(text) === 0)
    throw new InvalidArgumentError("It must be a whole number from 1.");
  return Number(text);
}
