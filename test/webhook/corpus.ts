import { type Address, parseAddress } from "../../src/webhook/address.ts";

/** Addresses that every spelling below leads to. */
const TARGETS = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "0.0.0.0", "100.64.0.1"];

/** Spellings of one IPv4 address in the host of a URL. Each one is either read as that address or is no URL at all. */
function spellings(dotted: string): string[] {
  const octets = dotted.split(".").map(Number);
  const [a = 0, b = 0, c = 0, d = 0] = octets;
  const dword = ((a * 256 + b) * 256 + c) * 256 + d;
  const hex = (value: number): string => `0x${value.toString(16)}`;
  const octal = (value: number): string => `0${value.toString(8)}`;
  const map = (digit: (value: number) => string): string => dotted.replace(/\d/g, (text) => digit(Number(text)));
  return [
    dotted,
    String(dword),
    hex(dword),
    hex(dword).toUpperCase().replace("0X", "0x"),
    `0X${dword.toString(16)}`,
    octal(dword),
    `00000${octal(dword)}`,
    octets.map(hex).join("."),
    octets.map((value) => `0x0000${value.toString(16)}`).join("."),
    octets.map(octal).join("."),
    octets.map((value) => `0000${octal(value)}`).join("."),
    [hex(a), octal(b), c, d].join("."),
    [octal(a), b, hex(c * 256 + d)].join("."),
    `${a}.${b}.${c * 256 + d}`,
    `${a}.${(b * 256 + c) * 256 + d}`,
    `${hex(a)}.${hex((b * 256 + c) * 256 + d)}`,
    `${a + 256}.${b}.${c}.${d}`,
    String(dword + 2 ** 32),
    `${dotted}.`,
    `${dotted}..`,
    map((value) => String.fromCodePoint(0xff10 + value)), // full-width digits
    map((value) => (value === 0 ? "\u24ea" : String.fromCodePoint(0x2460 + value - 1))), // circled digits
    map((value) => String.fromCodePoint(0x0660 + value)), // Arabic-Indic digits
    map((value) => String.fromCodePoint(0x1d7d8 + value)), // double-struck digits
    dotted.replaceAll(".", "\u3002"), // ideographic full stop
    dotted.replaceAll(".", "\uff0e"),
    dotted.replaceAll(".", "\uff61"),
    dotted.replaceAll(/./g, (character) => `%${character.charCodeAt(0).toString(16)}`),
    dotted.replaceAll(/./g, (character) => `%25${character.charCodeAt(0).toString(16)}`),
    dotted.replaceAll(".", "%2e"),
    dotted.replace(".", "\u00ad."), // soft hyphen
    dotted.replace(".", "\u200b."), // zero-width space
    dotted.replace(".", "\u200d."), // zero-width joiner
    dotted.replace(".", "\u2060."), // word joiner
    dotted.replace(".", "\ufeff."),
    ` ${dotted}`,
    `${dotted} `,
    dotted.replace(".", "\t."),
    dotted.replace(".", "\r\n."),
    dotted.replace(".", "%0a."),
    dotted.replace(".", "%00."),
  ];
}

/** The IPv6 addresses, without brackets, that carry an IPv4 address in one of the known ways. */
function carriers(dotted: string): string[] {
  const [a = 0, b = 0, c = 0, d = 0] = dotted.split(".").map(Number);
  const group = (high: number, low: number): string => (high * 256 + low).toString(16);
  const high = group(a, b);
  const low = group(c, d);
  return [
    `::ffff:${dotted}`,
    `::ffff:${high}:${low}`,
    `0:0:0:0:0:ffff:${high}:${low}`,
    `0000:0000:0000:0000:0000:FFFF:${dotted}`,
    `::${dotted}`,
    `::${high}:${low}`,
    `::ffff:0:${dotted}`,
    `::ffff:0:${high}:${low}`,
    `64:ff9b::${dotted}`,
    `64:ff9b::${high}:${low}`,
    `64:ff9b:1::${dotted}`,
    `64:ff9b:1:${high}:${low}::`,
    `2002:${high}:${low}::`,
    `2002:${high}:${low}::1`,
    `2001:0:${high}:${low}::`,
    `2001:0:808:808:0:0:${group(~a & 255, ~b & 255)}:${group(~c & 255, ~d & 255)}`,
    `2606:4700::5efe:${dotted}`,
    `2606:4700::0:5efe:${high}:${low}`,
    `2606:4700::200:5efe:${dotted}`,
    `::5efe:${dotted}`,
    `fe80::5efe:${dotted}`,
  ];
}

/** Blocks that are not the public internet's, as `first-last`. Written out by hand, apart from the code's own tables. */
export const CLOSED_IPV4 = [
  "0.0.0.0-0.255.255.255",
  "10.0.0.0-10.255.255.255",
  "100.64.0.0-100.127.255.255",
  "127.0.0.0-127.255.255.255",
  "168.63.129.16-168.63.129.16",
  "169.254.0.0-169.254.255.255",
  "172.16.0.0-172.31.255.255",
  "192.0.0.0-192.0.0.255",
  "192.0.2.0-192.0.2.255",
  "192.31.196.0-192.31.196.255",
  "192.52.193.0-192.52.193.255",
  "192.88.99.0-192.88.99.255",
  "192.168.0.0-192.168.255.255",
  "192.175.48.0-192.175.48.255",
  "198.18.0.0-198.19.255.255",
  "198.51.100.0-198.51.100.255",
  "203.0.113.0-203.0.113.255",
  "224.0.0.0-255.255.255.255",
].map((range) => range.split("-") as [string, string]);

/** IPv6 addresses outside the public internet. */
export const CLOSED_IPV6 = [
  ..."::|::1|::2|1::1|100::|100::1|100:0:0:1::1|64:ff9b:1::|64:ff9b:2::1|fe80::1|febf::1|fec0::1|feff::1".split("|"),
  ..."fc00::|fc00::1|fd00::1|fd00:ec2::254|fd20:ce::254|fdff:ffff::1|ff00::|ff01::1|ff02::1|ff05::2|ff0e::1".split("|"),
  ..."ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff|2001::|2001::1|2001:1::1|2001:2::1|2001:3::1|2001:4:112::1".split("|"),
  ..."2001:10::1|2001:1f::1|2001:20::1|2001:2f::1|2001:30::1|2001:1ff:ffff::|2001:db8::|2001:db8:ffff::1".split("|"),
  ..."2002::|2002:ffff::1|2620:4f:8000::|2620:4f:8000:ffff::1|3fff::|3fff:fff::1|4000::1|5f00::1|8000::1".split("|"),
  ..."1fff:ffff::1|e000::1|2606:4700:64::169.254.169.254".split("|"),
];

/** URLs that lead nowhere public, each by itself. */
export const CLOSED_URLS: readonly string[] = [
  ...TARGETS.flatMap((target) =>
    spellings(target).flatMap((host) => [`http://${host}/`, `https://${host}:8443/hook?x=1`]),
  ),
  ...TARGETS.flatMap((target) => carriers(target).map((host) => `https://[${host}]/`)),
  ...CLOSED_IPV4.flat().map((host) => `https://${host}/`),
  ...CLOSED_IPV6.map((host) => `https://[${host}]/`),
  // Zones, broken brackets.
  ..."[fe80::1%25eth0]|[fe80::1%eth0]|[::1|::1]|[::1]]|[[::1]]|[127.0.0.1]|[::1].example.com|[]|[::g]|[1:2]"
    .split("|")
    .map((host) => `https://${host}/`),
  // Who is the host, and who the user?
  "https://8.8.8.8@127.0.0.1/",
  "https://good.example.com@127.0.0.1/",
  "https://good.example.com%40127.0.0.1/",
  "https://127.0.0.1@good.example.com/",
  "https://@good.example.com/",
  "https://:@good.example.com/",
  "https://127.0.0.1#@good.example.com/",
  "https://127.0.0.1?@good.example.com/",
  "https://127.0.0.1\\@good.example.com/",
  "https://good.example.com\\@127.0.0.1/",
  "https://good.example.com:443@127.0.0.1:443/",
  "https://good.example.com\t@127.0.0.1/",
  "https://good.example.com /",
  "https://good.example.com\u0000.127.0.0.1/",
  // Slashes and schemes.
  ..."https:127.0.0.1|https:/127.0.0.1|https:///127.0.0.1|https:\\\\127.0.0.1|https:/\\127.0.0.1|//127.0.0.1/".split(
    "|",
  ),
  ..."https:good.example.com|https:///good.example.com|\\\\127.0.0.1\\x|127.0.0.1|good.example.com|/hook||https://|https:///".split(
    "|",
  ),
  ..."gopher://|file://|ftp://|ws://|wss://|unix://|http+unix://|jar:http://|view-source:http://|dict://|ldap://|tftp://|sftp://|blob:https://|netdoc://"
    .split("|")
    .map((scheme) => `${scheme}good.example.com/x`),
  "file:///etc/passwd",
  "data:text/plain,x",
  "javascript:alert(1)",
  "about:blank",
  "mailto:a@b.example",
  "HTTP://127.0.0.1/",
  "hTtPs://LOCALHOST/",
  // Ports.
  ..."0|65536|080x|-1|99999|1e3|0x50|80:443|+443| 443".split("|").map((port) => `https://good.example.com:${port}/`),
  ...[1, 7, 9, 19, 21, 22, 23, 25, 53, 110, 111, 135, 139, 143, 389, 445, 465, 514, 587, 636, 873, 993, 995]
    .concat([
      1433, 1521, 2049, 2181, 2375, 2379, 3306, 3389, 5432, 5672, 5900, 5984, 6000, 6379, 9042, 9092, 9200, 9229,
    ])
    .concat([10250, 11211, 27017, 61616])
    .map((port) => `https://good.example.com:${port}/`),
  "https://good.example.com:/",
  // Names.
  ..."localhost|LOCALHOST|localhost.|a.localhost|localhost.localdomain|ip6-localhost|ip6-loopback|a.b.internal"
    .split("|")
    .map((host) => `https://${host}/`),
  ..."metadata|metadata.|metadata.google.internal|METADATA.GOOGLE.INTERNAL.|metadata.example.com|instance-data"
    .split("|")
    .map((host) => `https://${host}/`),
  ..."instance-data.ec2.internal|kubernetes|kubernetes.default|kubernetes.default.svc|db|printer.local|router.lan"
    .split("|")
    .map((host) => `https://${host}/`),
  ..."nas.home.arpa|wiki.corp|host.docker.internal|gateway.docker.internal|postgres|redis.|a..b.example.com|.example.com"
    .split("|")
    .map((host) => `https://${host}/`),
  "https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/", // circled letters
  "https://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/", // full-width letters
  "https://l\u043ecalhost/", // Cyrillic o
  "https://xn--lcalhost-2ig/",
  "https://lo\u00adcalhost/",
  "https://local%68ost/",
  `https://${"a".repeat(64)}.example.com/`,
  `https://${"a.".repeat(125)}example/`,
  `https://${`${"a".repeat(60)}.`.repeat(4)}example.com/`,
  "https://-a.example.com/",
  "https://a-.example.com/",
  "https://*.example.com/",
  "https://a,b.example.com/",
  "https://a'b.example.com/",
  `https://good.example.com/${"x".repeat(2048)}`,
];

/** Answers of DNS that may not be dialled: each leads `https://name.example.com/` nowhere. */
export const CLOSED_ANSWERS: readonly (readonly string[])[] = [
  ...TARGETS.map((address) => [address]),
  ...TARGETS.flatMap(carriers).map((address) => [address]),
  ...CLOSED_IPV4.flat().map((address) => [address]),
  ...CLOSED_IPV6.map((address) => [address]),
  // One closed answer among open ones, in every place and family.
  ...TARGETS.flatMap((address) => [
    ["8.8.8.8", address],
    [address, "8.8.8.8"],
    ["8.8.8.8", "1.1.1.1", address, "9.9.9.9"],
    ["2606:4700::1111", address],
    ["8.8.8.8", `::ffff:${address}`],
  ]),
  ["8.8.8.8", "::1"],
  ["8.8.8.8", "fd00::1"],
  // What is not an address at all.
  ..."localhost|127.1|0x7f000001|2130706433|8.8.8.8.|8.8.8|fe80::1%eth0|2606:4700::1%eth0|[::1]|8.8.8.8/32||08.8.8.8| 8.8.8.8"
    .split("|")
    .map((text) => [text]),
];

/** The number of an address in text; for arithmetic on the edges of ranges. */
export function number(text: string): bigint {
  const address: Address | undefined = parseAddress(text);
  if (address === undefined) throw new Error(text);
  return address.value;
}
