#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { Command, InvalidArgumentError, Option } from "commander";
import { connectionOptions } from "./api/connection.ts";
import { showConfig } from "./config.ts";
import { EXIT, exitCodeFor, failureText } from "./failure.ts";

// Commands are imported when they are called: `carillon --help` does not load a database driver.
const program = new Command("carillon")
  .description(
    "A scheduling service: cron jobs, message queues, one-time tasks and webhooks. Settings come from the environment.",
  )
  .version(JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")).version)
  .showHelpAfterError("(carillon --help shows the commands)")
  .enablePositionalOptions()
  .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? EXIT.ok : EXIT.usage));

program
  .command("dev")
  .description("run everything for development: embedded PostgreSQL, loopback only, a key that is printed")
  .option("--virtual-clock", "have the clock stand still until carillon clock advance moves it")
  .action((options) => run(async () => (await import("./dev.ts")).dev(options)));
program
  .command("serve")
  .description("run in production; needs CARILLON_DATABASE_URL")
  // Taken in order to be refused in more words than those for what is unknown.
  .addOption(new Option("--virtual-clock").hideHelp())
  .action((options) => run(async () => (await import("./serve.ts")).serve(options)));
program
  .command("migrate")
  .description("bring the database's schema up to date")
  .action(() => run(async () => (await import("./migrate.ts")).migrateCommand()));
program
  .command("doctor")
  .description("check database, schema, clock, durability, secrets key, data directory, port and outbound rules")
  .action(() => run(async () => (await import("./doctor.ts")).doctor()));
program
  .command("config")
  .description("show every setting")
  .option("--markdown", "as the page docs/config.md")
  .action((options) => run(() => showConfig(options)));
program
  .command("listen")
  .description("receive webhooks on loopback, print them and verify their signatures")
  .option("--port <port>", "port to listen on; 0 takes any free one", wholeNumber(0, 65_535), 4_000)
  .option("--status <status>", "HTTP status to answer with", wholeNumber(200, 599), 200)
  .option("--secret <secret>", "secret to verify with (default: CARILLON_WEBHOOK_SECRET, or the project's)")
  .option("--project <name>", "project whose signing secret counts", "default")
  .action((options) => run(async () => (await import("./listen.ts")).listen(options)));

const keys = program.command("keys").description("make, list and revoke API keys");
keys
  .command("create")
  .description("make a key and print it, this one time; makes the project too")
  .requiredOption("--project <name>", "project that the key opens")
  .option("--name <name>", "what the key is for, for people", "")
  .option("--json", "print JSON")
  .action((options) => run(async () => (await import("./keys.ts")).createKey(options)));
keys
  .command("list")
  .description("list keys: their ids and first characters")
  .option("--project <name>", "only this project's")
  .option("--json", "print JSON")
  .action((options) => run(async () => (await import("./keys.ts")).listKeys(options)));
keys
  .command("revoke <key_id>")
  .description("revoke a key; running servers refuse it within 5 seconds")
  .action((id: string) => run(async () => (await import("./keys.ts")).revokeKey(id)));

const projects = program.command("projects").description("show and change projects");
projects
  .command("list")
  .description("list projects")
  .option("--json", "print JSON")
  .action((options) => run(async () => (await import("./projects.ts")).showProjects(options)));
projects
  .command("strict <project>")
  .description("refuse, rather than warn of, what a request has too much")
  .option("--path-body <on|off>", "identifiers in the body that differ from the path", onOrOff)
  .option("--fields <on|off>", "unknown fields", onOrOff)
  .action((project: string, options) => run(async () => (await import("./projects.ts")).setStrict(project, options)));
projects
  .command("signing-secret <project>")
  .description("print the secret that signs what has no secret of its own")
  .action((project: string) => run(async () => (await import("./projects.ts")).showSigningSecret(project)));

const secrets = program.command("secrets").description("work on the secrets in the database");
secrets
  .command("reencrypt")
  .description("seal everything with the first key of CARILLON_SECRETS_KEY, so that the others can go")
  .action(() => run(async () => (await import("./secrets.ts")).reencryptSecrets()));

const plan = program
  .command("plan <file>")
  .description(
    "compare what a YAML file declares with what a server has: queues, cron jobs, push subscriptions, webhooks",
  )
  .option("--detailed-exitcode", "end with 2 when there is something to do")
  .action((file: string, options) =>
    run(async () => (await import("./declared/commands.ts")).planCommand(file, { ...program.opts(), ...options })),
  );
const apply = program
  .command("apply <file>")
  .description("make a server have what a YAML file declares; asks first")
  .option("--yes", "do not ask")
  .action((file: string, options) =>
    run(async () => (await import("./declared/commands.ts")).applyCommand(file, { ...program.opts(), ...options })),
  );
const exportFile = program
  .command("export")
  .description("print what a project has as a YAML file for plan and apply; without secrets")
  .action((options) =>
    run(async () => (await import("./declared/commands.ts")).exportCommand({ ...program.opts(), ...options })),
  );
for (const command of [plan, apply]) {
  command
    .option("--prune", "delete what the file does not declare, of the kinds that it has a section for")
    .option("--secrets", "set the secrets of what is there already, too: they cannot be compared");
}
for (const command of [program, plan, apply, exportFile]) {
  for (const option of connectionOptions()) command.addOption(option);
}

// Reading the contract takes a moment that the commands above need not wait for.
if (!program.commands.some((command) => command.name() === process.argv[2])) {
  const { addApiCommands } = await import("./api/commands.ts");
  await addApiCommands(program, run);
}

// A reader that has seen enough (`carillon keys list | head`) closes the pipe.
process.stdout.on("error", () => process.exit());
await program.parseAsync();

/** Runs a command to its exit code; a failure prints one line, or one for each bad setting. */
async function run(command: () => Promise<number>): Promise<void> {
  try {
    process.exitCode = await command();
  } catch (error) {
    console.error(failureText(error));
    process.exitCode = exitCodeFor(error);
  }
  // Everything is closed by now; what still holds the process open is not worth waiting for.
  setTimeout(() => process.exit(), 2_000).unref();
}

function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max) {
      throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
    }
    return value;
  };
}

function onOrOff(text: string): boolean {
  if (text !== "on" && text !== "off") throw new InvalidArgumentError("It must be on or off.");
  return text === "on";
}
