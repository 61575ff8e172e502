type Headers = Readonly<Record<string, string>>;

/** How the names of headers begin that nobody but the service gives a message, such as what the fire of a cron job says. */
const OWN = "carillon-";

/** The headers of a message, apart: those that only the service gives, and those that its publisher gave. */
export function splitHeaders(headers: Headers): { readonly own: Headers; readonly given: Headers } {
  const entries = Object.entries(headers);
  const isOwn = ([name]: [string, string]): boolean => name.startsWith(OWN);
  return {
    own: Object.fromEntries(entries.filter(isOwn)),
    given: Object.fromEntries(entries.filter((entry) => !isOwn(entry))),
  };
}

/** What such headers say, by their names without `carillon-`. */
export function saidBy(own: Headers): Record<string, string> {
  return Object.fromEntries(Object.entries(own).map(([name, value]) => [name.slice(OWN.length), value]));
}
