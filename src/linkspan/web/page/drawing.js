// The graph's picture: cytoscape draws boxes, links and paths, and Dots the containers that are not in a path.
import cytoscape from "cytoscape";
import { Dots, short } from "/dots.js";
import { style } from "/graph-style.js";
import { SIGNS, bare, health, label, linkRef } from "/model.js";
import { t } from "/words.js";

const KERNELS = 100; // hosts whose kernels are drawn; of more, only those in a path
const FEW = 8; // hosts that a trace does not zoom into: all of them are large enough
const MARGIN = 24;
const TOP = 36; // of the legend and the buttons
const MARKS = "chosen end passed stopped under";

export class Drawing {
  constructor(box, pick) {
    this.box = box;
    this.graph = cytoscape({ container: box, minZoom: 0.02, maxZoom: 3, boxSelectionEnabled: false, autoungrabify: true, pixelRatio: "auto", layout: { name: "preset" } });
    this.dots = new Dots(box, this.graph);
    this.spots = new Map(); // nodes that are drawn only where they are needed, by their ids
    this.extra = this.graph.collection(); // what only the marks need
    this.marked = this.graph.collection();
    this.moved = false; // by the user: then nothing else moves it
    this.goal = []; // the path's nodes
    this.hosts = 0;
    this.graph.on("tap", ({ target, position }) => {
      const key = this.dots.at(position);
      if (key) pick(`c:${key}`);
      else if (target !== this.graph && target.data("ref")) pick(target.data("ref"));
    });
    this.graph.on("mousemove", ({ target, position }) => {
      box.classList.toggle("points", Boolean(this.dots.at(position) || (target !== this.graph && target.data("ref"))));
    });
    this.graph.on("dragpan pinchzoom scrollzoom", () => { this.moved = true; });
    this.observer = new ResizeObserver(() => {
      this.graph.resize();
      this.dots.resize();
      if (!this.moved) this.fit();
    });
    this.observer.observe(box);
  }

  end() {
    this.observer.disconnect();
    this.graph.destroy();
    this.dots.end();
  }

  style(order) {
    this.graph.style(style(order));
    this.dots.style(order);
  }

  // Brings the nodes to those of a layout, and leaves alone what is there already.
  place(nodes, state, open) {
    this.hosts = Object.keys(state.hosts).length;
    const kept = new Map();
    this.spots = new Map();
    for (const node of nodes) {
      const optional = node.kind === "container" || (node.kind === "kernel" && this.hosts > KERNELS);
      (optional ? this.spots : kept).set(node.id, { node, data: dataOf(node, state, open) });
    }
    const before = this.graph.nodes().length;
    this.unmark();
    this.graph.batch(() => {
      this.graph.nodes().forEach((node) => { if (!kept.has(node.id())) node.remove(); });
      for (const [id, { node, data }] of kept) {
        const there = this.graph.getElementById(id);
        if (!there.length) this.draw(data, node.position);
        else {
          there.data(data);
          there.position(node.position);
        }
      }
    });
    this.dots.put(nodes.filter((one) => one.kind === "container"));
    if (this.graph.nodes().length !== before && !this.moved) this.fit();
  }

  // Draws what joins the hosts, and the sessions with routers; `near(pair)` says which links are brought out. If `all`
  // links are drawn, each is bent around the hosts between its ends.
  join(pairs, near, all) {
    const end = (host) => (this.hosts > KERNELS ? `h:${host}` : `k:${host}`);
    const lines = new Map();
    for (const one of pairs) {
      const [from, to] = [this.graph.getElementById(end(one.a)), this.graph.getElementById(end(one.b))];
      if (!from.length || !to.length) continue;
      const ref = linkRef(one.a, one.b);
      lines.set(ref, { near: near(one), data: { ref, pair: true, bend: all ? bend(from.position(), to.position()) : 0, source: from.id(), target: to.id(), problem: one.problem ? 1 : 0, label: one.problem ? "✕" : one.backends.join(", ") } });
    }
    this.graph.nodes("[kind = 'router']").forEach((router) => {
      const data = { ref: router.id(), pair: true, bend: 0, source: end(router.data("at")), target: router.id(), problem: router.data("level") === "ok" ? 0 : 1, label: router.data("level") === "ok" ? "BGP" : "✕" };
      if (this.graph.getElementById(data.source).length) lines.set(`s:${router.id()}`, { near: false, data });
    });
    this.graph.batch(() => {
      this.graph.edges("[pair]").forEach((edge) => { if (!lines.has(edge.id())) edge.remove(); });
      for (const [id, { near, data }] of lines) {
        const there = this.graph.getElementById(id);
        const edge = there.length ? there.data(data) : this.graph.add({ group: "edges", data: { id, ...data } });
        edge.toggleClass("near", near);
      }
    });
  }

  // Marks what is chosen, and draws a trace's path: {chosen, ends, there, back, stopped}.
  mark({ chosen, ends, there, back, stopped }) {
    this.unmark(); // by itself: cytoscape gives no style to a node that is removed and added in one batch
    this.graph.batch(() => {
      const path = [...new Set([...there, ...back])];
      this.outside(path.filter((id) => !this.spots.has(id) && !this.graph.getElementById(id).length));
      if (chosen && !chosen.startsWith("n:")) this.add(this.need(chosen), "chosen");
      for (const ref of ends) this.add(this.need(path.length && ref.startsWith("h:") ? `k:${ref.slice(2)}` : ref), "end");
      this.walk(there, "there");
      this.walk(back, "back");
      if (stopped?.at) {
        this.add(this.need(stopped.at), "stopped");
        if (stopped.target !== stopped.at && this.need(stopped.target).length) {
          this.take(this.graph.add({ group: "edges", data: { id: "hop stopped", source: stopped.at, target: stopped.target, hop: "stopped", label: "✕" } }));
        }
      }
      const keys = this.extra.nodes().map((node) => node.id()).filter((id) => id.startsWith("c:")).map((id) => id.slice(2));
      const network = chosen.startsWith("n:") ? chosen.slice(2) : "";
      this.dots.mark(new Set(keys), network, path.length > 0);
      this.goal = path;
    });
    if (!this.moved) this.fit();
  }

  unmark() {
    this.marked.removeClass(MARKS);
    this.extra.remove();
    this.marked = this.extra = this.graph.collection();
  }

  walk(nodes, way) {
    nodes.forEach((id, index) => {
      const node = this.need(id);
      this.add(node, "passed");
      if (!index) return;
      const before = this.need(nodes[index - 1]);
      this.add(before.edgesWith(node).filter("[pair]"), "under");
      this.take(this.graph.add({ group: "edges", data: { id: `hop ${way} ${index}`, source: before.id(), target: id, hop: way } }));
    });
  }

  add(elements, mark) {
    elements.addClass(mark);
    this.marked = this.marked.union(elements);
  }

  take(elements) {
    this.extra = this.extra.union(elements);
  }

  // A drag that begins at a node moves the picture, as one beside it does: boxes cover most of it.
  draw(data, position) {
    return this.graph.add({ group: "nodes", data, position, pannable: true });
  }

  // Returns the node, which is drawn now if it has a place.
  need(id) {
    const there = this.graph.getElementById(id);
    const spot = this.spots.get(id);
    if (there.length || !spot) return there;
    const added = this.draw(spot.data, spot.node.position);
    this.take(added);
    return added;
  }

  // Draws what has no place at the right side of the others: machines outside of the cluster.
  outside(ids) {
    if (!ids.length) return;
    const around = this.graph.nodes().boundingBox();
    ids.forEach((id, index) => {
      const position = { x: around.x2 + 90, y: (around.y1 + around.y2) / 2 + 50 * (index - (ids.length - 1) / 2) };
      this.take(this.draw({ id, kind: "outside", label: id.slice(2) }, position));
    });
  }

  // Shows all again, wherever the user has moved it to.
  show() {
    this.moved = false;
    this.fit();
  }

  zoom(by) {
    this.moved = true;
    this.graph.zoom({ level: this.graph.zoom() * by, renderedPosition: { x: this.graph.width() / 2, y: this.graph.height() / 2 } });
  }

  // Fits everything, or in a large cluster a path's hosts, into what the panel leaves free.
  fit() {
    let shown = this.graph.nodes();
    if (this.goal.length && this.hosts > FEW) {
      const hosts = new Set(this.goal.map((id) => (id.startsWith("k:") ? `h:${id.slice(2)}` : id)));
      shown = shown.filter((node) => hosts.has(node.id()));
    }
    const height = this.graph.height() - this.covered();
    if (!shown.length || height < 60) return;
    const around = shown.boundingBox({ includeLabels: false });
    const room = { width: this.graph.width() - 2 * MARGIN, height: height - TOP - 2 * MARGIN };
    const largest = Math.max(1.35, this.graph.width() / 1000); // a few hosts need not fill a large screen
    const zoom = Math.max(0.02, Math.min(room.width / around.w, room.height / around.h, largest));
    const pan = { x: this.graph.width() / 2 - (zoom * (around.x1 + around.x2)) / 2, y: TOP + (height - TOP) / 2 - (zoom * (around.y1 + around.y2)) / 2 };
    this.graph.viewport({ zoom, pan });
  }

  // Returns how much of the picture's lower side is below the panel, in pixels.
  covered() {
    const panel = document.querySelector(".panel")?.getBoundingClientRect();
    const own = this.box.getBoundingClientRect();
    if (!panel || panel.left >= own.right || panel.right <= own.left || panel.top <= own.top) return 0;
    return Math.max(0, own.bottom - panel.top);
  }
}

function dataOf({ id, kind, host, container, router, size, up }, state, open) {
  if (kind === "container") return { id, kind, ref: id, network: container.network, label: short(label(container)) };
  if (kind === "router") return { id, kind, ref: id, at: state.about.here, level: router.state === "established" ? "ok" : "bad", label: `${short(router.peer)}\nAS ${router.as}` };
  const level = health(state, host).level;
  if (kind === "kernel") return { id, kind, ref: `h:${host.name}`, level, label: bare(host.underlay?.addresses[0] ?? t("kernel")) };
  return { id, kind, ref: id, level, label: `${SIGNS[level]} ${short(host.name)}${open ? "" : ` · ${host.containers}`}`, width: size.width, height: size.height, side: up ? "bottom" : "top", margin: up ? -24 : 24 };
}

// Returns how far a link between two hosts is bent, so that it passes those that are in one row between them.
function bend(from, to) {
  if (from.y !== to.y) return 0;
  return Math.sign(to.x - from.x) * Math.sign(-from.y || 1) * (18 + Math.abs(to.x - from.x) / 24);
}
