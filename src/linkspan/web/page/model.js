// What the state means: pure functions, without the page.

const collator = new Intl.Collator(undefined, { numeric: true });

// Orders names as people do; no two are equal, though h1 and h01 are so for people.
function compare(a, b) {
  return collator.compare(a, b) || (a < b ? -1 : Number(a > b));
}

// Returns what a section of the state has by a key, which may be any text of the address bar.
export function itemOf(section, key) {
  return Object.hasOwn(section, key) ? section[key] : undefined;
}

// Returns a function of an object that remembers what it returned, as long as the object is there. Objects of the state
// never change.
function remembered(work) {
  const known = new WeakMap();
  return (one) => {
    if (!known.has(one)) known.set(one, work(one));
    return known.get(one);
  };
}

export const byName = remembered((items) => Object.values(items).sort((a, b) => compare(a.name, b.name)));

const present = remembered((hosts) => byName(hosts).filter((host) => host.state !== "removed"));

export function hostsOf(state) {
  return present(state.hosts);
}

export function label(container) {
  return container.name || container.id.slice(0, 12);
}

// Returns the containers of a section of the state, sorted, each with its key. One that did not change is the same
// object as before.
export const containersOf = remembered((containers) =>
  Object.entries(containers)
    .map(([key, one]) => keyed(one, key))
    .sort((a, b) => compare(label(a), label(b)) || compare(a.ifname, b.ifname)),
);

const withKeys = new WeakMap();

function keyed(container, key) {
  if (!withKeys.has(container)) withKeys.set(container, { ...container, key });
  return withKeys.get(container);
}

// Returns problems in a language, as far as the server knows their sentences.
export function problemsIn(problems, language) {
  if (language === "en") return problems;
  return Object.fromEntries(Object.entries(problems).map(([key, one]) => [key, { ...one, why: one.said[language] ?? one.why }]));
}

const problemsByHost = remembered((problems) => {
  const found = new Map();
  for (const one of Object.values(problems)) {
    for (const name of one.host ? one.host.split(", ") : [""]) found.set(name, [...(found.get(name) ?? []), one]);
  }
  return found;
});

// Returns the problems that concern a host; those without a host are the agent's own.
export function problemsOf(state, name) {
  const found = problemsByHost(state.problems);
  return [...(found.get(name) ?? []), ...(name === state.about.here ? (found.get("") ?? []) : [])];
}

const LEVELS = { alive: "ok", drained: "idle", silent: "warn", unknown: "warn" };

// Returns a text that is another one when hosts, problems, BGP sessions with routers or the agent's presence have
// changed: then answers to questions may be different. What ticks in a problem's words is no change, and neither are
// the states that a session goes through while it is down.
export function changesOf({ about, hosts, problems, routers }) {
  const named = Object.values(problems).map((one) => [one.host, one.network]);
  const states = Object.values(hosts).map((one) => one.state);
  const sessions = Object.values(routers).map((one) => [one.peer, one.state === "established"]);
  return JSON.stringify([named, states, sessions, about.away]);
}

// Returns {level, word, why} of a host: level is ok, idle, warn or bad. An agent that is alive may have its host cut off.
export function health(state, host) {
  const problems = problemsOf(state, host.name);
  const cut = problems.find((one) => one.network || !one.host);
  if (cut) return { level: "bad", word: cut.network && host.state === "alive" ? "cut off" : host.state, why: cut.why };
  const level = LEVELS[host.state] ?? "warn";
  return { level: problems.length && level === "ok" ? "warn" : level, word: host.state, why: problems[0]?.why ?? "" };
}

export const SIGNS = { ok: "✓", idle: "‖", warn: "!", bad: "✕" };

// Returns a function that says whether a container contains the words of a search.
export function searched(search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return (container) => words.every((word) => textOf(container).includes(word));
}

const textOf = remembered((container) => {
  const labels = Object.entries(container.labels ?? {}).map(([key, value]) => `${key}=${value}`);
  const words = [container.name, container.id, container.host, container.network, ...container.addresses, ...labels];
  return words.join("\n").toLowerCase();
});

export function bare(address) {
  return address.split("/")[0];
}

// Returns what `trace` calls an object of the page: c:KEY is a container, h:NAME a host.
export function traceName(state, ref) {
  const [kind, name] = [ref.slice(0, 2), ref.slice(2)];
  if (kind === "h:") return `host:${name}`;
  const container = itemOf(state.containers, name);
  if (!container) return name.split("/")[0];
  return container.addresses.length ? bare(container.addresses[0]) : container.id;
}

// Returns the name of an object for people.
export function refName(state, ref) {
  const name = ref.slice(2);
  if (!ref.startsWith("c:")) return name;
  const container = itemOf(state.containers, name);
  return container ? label(container) : name.split("/")[0].slice(0, 12);
}

// Returns what the address bar calls the link between two hosts, in either order.
export function linkRef(a, b) {
  return `l:${[a, b].sort(compare).join(" ")}`;
}

// Returns the pairs of hosts that exchange packets: {a, b, networks, backends, problem}. With `among`, a set of names, one
// of each pair must be in it: of 1,000 hosts there are half a million pairs.
export function links(state, hosts, among = null) {
  const members = new Map();
  for (const host of hosts) members.set(host.name, new Set(host.leases.map((lease) => lease.network)));
  const crossing = new Set(
    Object.values(state.networks)
      .filter((network) => !["bridge", "host"].includes(network.backend))
      .map((network) => network.name),
  );
  const found = [];
  hosts.forEach((a, index) => {
    const others = hosts.slice(index + 1);
    for (const b of among === null || among.has(a.name) ? others : others.filter((one) => among.has(one.name))) {
      const networks = [...members.get(a.name)].filter((name) => crossing.has(name) && members.get(b.name).has(name));
      if (!networks.length) continue;
      const backends = [...new Set(networks.map((name) => state.networks[name].backend))];
      found.push({ a: a.name, b: b.name, networks, backends, problem: cut(state, a.name, b.name) });
    }
  });
  return found;
}

// The agent's host knows of its own peers only.
function cut(state, a, b) {
  const here = state.about.here;
  if (a !== here && b !== here) return "";
  const other = a === here ? b : a;
  return problemsOf(state, other).find((one) => one.network)?.why ?? "";
}

// Returns the nodes of the graph that a trace's hops pass, each once in a row: k:HOST is a host's kernel, c:KEY a
// container, x:NAME something that the graph does not have (a router, a switch, a machine outside).
export function path(state, hops, containers) {
  const names = new Set(hostsOf(state).map((one) => one.name));
  const nodes = [];
  for (const hop of hops) {
    const node = hopNode(names, hop, containers);
    if (nodes.at(-1) !== node) nodes.push(node);
  }
  return nodes;
}

function hopNode(names, hop, containers) {
  if (!names.has(hop.host)) return `x:${hop.namespace && hop.namespace !== "host" ? hop.namespace : hop.host || "outside"}`;
  if (hop.namespace === "host") return `k:${hop.host}`;
  const [name, network] = hop.namespace.split("@");
  const found = containers.find((one) => one.host === hop.host && label(one) === name && (!network || one.network === network));
  return found ? `c:${found.key}` : `x:${hop.namespace}`;
}

// Returns for how many containers a host's blocks have addresses: a container has one of each family.
export function capacity(prefixes) {
  const sizes = prefixes.map((prefix) => [prefix.includes(":"), 2 ** ((prefix.includes(":") ? 128 : 32) - Number(prefix.split("/")[1]))]);
  const sum = (six) => sizes.filter(([family]) => family === six).reduce((total, [, size]) => total + size, 0);
  return sum(false) || sum(true);
}
