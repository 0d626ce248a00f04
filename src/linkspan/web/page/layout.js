// Where things are in the graph. A host and a container keep their places, also while they are away: the picture does
// not jump when they come back. All boxes have the size of the fullest one, and grow with it.

const CELL = { width: 74, height: 46 }; // of a container with its name
const BOX = { side: 16, top: 40, bottom: 34, least: 3 }; // margins of a host's box, and the columns that it has at least
const GAP = { x: 44, y: 96, routers: 210 }; // between boxes; between two rows, also with routers in between
const ROUTER = { width: 128, height: 64 };
const LEAST = 12; // places that a host's containers may take before places of containers that are away are given again
const TWO_ROWS = 8; // hosts that are in two rows, which face each other; more are in a grid

export class Layout {
  constructor() {
    this.hosts = new Map(); // places, by the hosts' names
    this.containers = new Map(); // by a host's name: places by the containers' keys
    this.room = new Map(); // by a host's name: the most places it ever had
  }

  // Returns the nodes of the graph with their positions. Routers are near the host that has sessions with them.
  elements(hosts, containers, routers = [], here = "") {
    const names = new Set(hosts.map((host) => host.name));
    for (const host of hosts) place(this.hosts, host.name, names);
    const within = new Map(hosts.map((host) => [host.name, []]));
    for (const one of containers) within.get(one.host)?.push(one);
    for (const [host, all] of within) {
      if (!this.containers.has(host)) this.containers.set(host, new Map());
      const places = this.containers.get(host);
      // Containers of one network are beside each other, as far as those that have a place already let them.
      const fresh = all.filter((one) => !places.has(one.key)).sort((a, b) => (a.network < b.network ? -1 : a.network > b.network ? 1 : 0));
      const keys = new Set(all.map((one) => one.key));
      for (const one of fresh) place(places, one.key, keys);
      this.room.set(host, Math.max(this.room.get(host) ?? 1, ...[...places.values()].map((number) => number + 1)));
    }
    const most = Math.max(1, ...hosts.map((host) => this.room.get(host.name)));
    const columns = Math.min(most, Math.ceil(Math.sqrt(most * 1.5)));
    const rows = Math.ceil(most / columns);
    const size = { width: Math.max(BOX.least, columns) * CELL.width + 2 * BOX.side, height: BOX.top + rows * CELL.height + BOX.bottom };
    const total = Math.max(1, ...[...this.hosts.values()].map((number) => number + 1));
    const gap = routers.length ? GAP.routers : GAP.y;
    const nodes = [];
    for (const host of hosts) {
      const { x, y, up } = spot(this.hosts.get(host.name), total, size, gap);
      nodes.push({ id: `h:${host.name}`, kind: "host", host, position: { x, y }, size, up });
      nodes.push({ id: `k:${host.name}`, kind: "kernel", host, position: { x, y: y + (up ? -1 : 1) * (size.height / 2) } });
      const left = x - (columns * CELL.width) / 2;
      const top = y - size.height / 2 + (up ? BOX.bottom : BOX.top);
      for (const one of within.get(host.name)) {
        const number = this.containers.get(host.name).get(one.key);
        const position = { x: left + ((number % columns) + 0.5) * CELL.width, y: top + (Math.floor(number / columns) + 0.35) * CELL.height };
        nodes.push({ id: `c:${one.key}`, kind: "container", container: one, position });
      }
    }
    const by = nodes.find((node) => node.id === `k:${here}`)?.position ?? { x: 0, y: 0 };
    const middle = total <= TWO_ROWS; // between the rows; in a grid at the left side
    routers.forEach((router, index) => {
      const position = middle
        ? { x: by.x + (index - (routers.length - 1) / 2) * ROUTER.width, y: 0 }
        : { x: -size.width / 2 - ROUTER.width, y: index * ROUTER.height };
      nodes.push({ id: `b:${router.peer}`, kind: "router", router, position });
    });
    return nodes;
  }
}

// Gives a key a place. Places of keys that are away stay free for them, unless there would be twice as many places as
// keys: then the one that came first loses its own.
function place(places, key, there) {
  if (places.has(key)) return;
  const taken = new Set(places.values());
  let number = 0;
  while (taken.has(number)) number += 1;
  const away = [...places.keys()].find((other) => !there.has(other));
  if (number >= Math.max(LEAST, 2 * there.size) && away !== undefined) {
    number = places.get(away);
    places.delete(away);
  }
  places.set(key, number);
}

// Returns the middle of a host's box, and whether its kernel is at the upper side.
function spot(number, total, size, gap) {
  const width = size.width + GAP.x;
  if (total <= TWO_ROWS) {
    const above = Math.ceil(total / 2) < total ? Math.ceil(total / 2) : total;
    const upper = number < above;
    const row = upper ? above : total - above;
    const index = upper ? number : number - above;
    return { x: (index - (row - 1) / 2) * width, y: ((upper ? -1 : 1) * (size.height + gap)) / 2, up: !upper };
  }
  const columns = Math.ceil(Math.sqrt((total * 1.4 * size.height) / size.width));
  return { x: (number % columns) * width, y: Math.floor(number / columns) * (size.height + GAP.x), up: false };
}
