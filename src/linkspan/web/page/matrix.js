// What the matrix of hosts shows, and why a cell has no value: pure functions, without the page.

export const MOST = 40; // hosts: more have no room, and the agent asks no more

// Returns the hosts of the matrix, in their order: all, or those that were asked, or before that this one and the first.
export function shownIn(here, hosts, asked) {
  if (hosts.length <= MOST) return hosts;
  const first = hosts.filter((one) => one.name !== here).slice(0, MOST - 1);
  const names = new Set(asked.length > 1 ? asked : [here, ...first.map((one) => one.name)]);
  return hosts.filter((one) => names.has(one.name));
}

// Returns the worst path in each direction, by "FROM TO": a host tells its own in each network.
export function worstOf(paths) {
  const found = new Map();
  for (const one of paths) {
    const key = `${one.host} ${one.peer}`;
    const known = found.get(key);
    if (!known || one.loss > known.loss || (one.loss === known.loss && one.round_trip > known.round_trip)) found.set(key, one);
  }
  return found;
}

// Returns a path's round trip for people: none if the hosts are cut off, whatever an earlier ping took.
export function roundTrip(path, problem) {
  const { round_trip: seconds } = path;
  return seconds === null || levelOf(path, problem) === "bad" ? "–" : `${(seconds * 1000).toFixed(seconds < 0.01 ? 2 : 0)} ms`;
}

// Returns how bad a direction is: the state knows that hosts are cut off before all of the last minute's pings are lost.
export function levelOf({ loss }, problem) {
  if (problem || loss === 1) return "bad";
  return loss > 0 ? "warn" : "ok";
}

// Returns why a host has told nothing of a path: a word, the sentence behind it, and how bad it is.
export function untold(measured, failed, everywhere, host) {
  if (!measured) return failed ? { word: "no answer", why: failed, level: "warn" } : { word: "…", why: "" };
  const silent = measured.silent.find((one) => one.host === host);
  if (silent) return { word: "no answer", why: silent.why, level: "warn" };
  if (measured.hosts.includes(host)) return { word: "not measured yet", why: "" };
  return { word: everywhere ? "not asked yet" : "root only", why: "" };
}
