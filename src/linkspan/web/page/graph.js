// The graph: hosts as boxes, their containers in them, what joins the hosts, and the path of a trace.
import cytoscape from "cytoscape";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { MOST_IN_MAP, SIGNS, bare, containersOf, health, hostsOf, label, links, path } from "/model.js";
import { Layout } from "/layout.js";
import { html } from "/parts.js";
import { t } from "/words.js";

const MESHED = 8; // hosts whose links are all drawn; with more, only links of the chosen host, or with a problem
const DIMMED = 400; // containers that step back for a trace or a network; more would take too long
const LONGEST = 18; // characters of a label

export function Graph({ state, route, trace, pick, order }) {
  const box = useRef(null);
  const graph = useRef(null);
  const layout = useMemo(() => new Layout(), []);
  const [all, setAll] = useState(false);
  const chosen = useRef(pick);
  chosen.current = pick;
  const hosts = hostsOf(state);
  const open = all || state.about.total <= MOST_IN_MAP;
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);

  useEffect(() => {
    const made = cytoscape({ container: box.current, minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false, autoungrabify: true,
      textureOnViewport: true, hideEdgesOnViewport: false, pixelRatio: "auto", layout: { name: "preset" } });
    made.on("tap", "node[ref]", ({ target }) => chosen.current(target.data("ref")));
    made.on("mouseover mouseout", "node[ref]", ({ type }) => box.current.classList.toggle("points", type === "mouseover"));
    graph.current = made;
    const observer = new ResizeObserver(() => { made.resize(); fit(made); });
    observer.observe(box.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const follow = (event) => setDark(event.matches);
    scheme.addEventListener("change", follow);
    return () => { observer.disconnect(); scheme.removeEventListener("change", follow); made.destroy(); };
  }, []);

  useEffect(() => {
    graph.current.style(style(order));
  }, [dark, order.join("\n")]);

  useEffect(() => {
    const before = graph.current.nodes().length;
    update(graph.current, layout.elements(hosts, open ? containersOf(state) : []), state, hosts);
    if (graph.current.nodes().length !== before) fit(graph.current);
  }, [state, open]);

  const host = route.sel.startsWith("h:") ? route.sel.slice(2) : "";
  useEffect(() => join(graph.current, links(state, hosts), hosts, host), [state, host]);

  useEffect(() => show(graph.current, state, route, trace, layout), [state, route.sel, route.a, route.b, trace, open]);

  const text = t("Graph of {hosts} hosts and {containers} containers; the table has all of it.", { hosts: hosts.length, containers: state.about.total });
  return html`<section class="map" aria-label=${t("Graph")}>
    <div class="canvas" ref=${box} role="img" aria-label=${text}></div>
    <div class="tools">
      ${!open && state.about.complete && html`<button type="button" class="quiet" onClick=${() => setAll(true)}>${t("Show {n} containers", { n: state.about.total })}</button>`}
      <button type="button" class="quiet" aria-label=${t("Larger")} onClick=${() => zoom(graph.current, 1.3)}>+</button>
      <button type="button" class="quiet" aria-label=${t("Smaller")} onClick=${() => zoom(graph.current, 1 / 1.3)}>−</button>
      <button type="button" class="quiet" onClick=${() => fit(graph.current)}>${t("Fit")}</button>
    </div>
    <ul class="legend" aria-hidden="true">${order.slice(0, 8).map((name, index) => html`<li key=${name}><span class="dot" style=${{ background: `var(--net-${index % 8})` }}></span>${name}</li>`)}</ul>
  </section>`;
}

function fit(graph) {
  if (graph.nodes().length) graph.fit(graph.nodes(), 24);
  if (graph.zoom() > 1.35) { graph.zoom(1.35); graph.center(); }
}

function zoom(graph, by) {
  graph.zoom({ level: graph.zoom() * by, renderedPosition: { x: graph.width() / 2, y: graph.height() / 2 } });
}

function short(text) {
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
}

// Brings the graph's nodes and links to the state, and leaves alone what is there already.
function update(graph, nodes, state, hosts) {
  graph.batch(() => {
    const wanted = new Map();
    for (const node of nodes) wanted.set(node.id, node);
    const levels = new Map(hosts.map((host) => [host.name, health(state, host)]));
    graph.nodes().forEach((node) => { if (!wanted.has(node.id()) && !node.id().startsWith("x:")) node.remove(); });
    for (const { id, kind, host, container, position, size, up } of wanted.values()) {
      const data = { id, kind };
      if (kind === "host") {
        const now = levels.get(host.name);
        Object.assign(data, { ref: `h:${host.name}`, level: now.level, label: `${SIGNS[now.level]} ${short(host.name)}`, width: size.width, height: size.height, side: up ? "bottom" : "top", margin: up ? -24 : 24 });
      } else if (kind === "kernel") Object.assign(data, { ref: `h:${host.name}`, level: levels.get(host.name).level, label: bare(host.underlay?.addresses[0] ?? t("kernel")) });
      else Object.assign(data, { ref: `c:${container.key}`, network: container.network, label: short(label(container)) });
      const there = graph.getElementById(id);
      if (there.length) { there.data(data); there.position(position); } else graph.add({ group: "nodes", data, position });
    }
  });
}

// Draws what joins the hosts.
function join(graph, pairs, hosts, chosen) {
  const drawn = pairs.filter((one) => hosts.length <= MESHED || one.problem || one.a === chosen || one.b === chosen);
  const lines = new Map(drawn.map((one) => [`l:${one.a} ${one.b}`, one]));
  const at = (host) => graph.getElementById(`k:${host}`).position();
  graph.batch(() => {
    graph.edges("[pair]").forEach((edge) => { if (!lines.has(edge.id())) edge.remove(); });
    for (const [id, one] of lines) {
      const data = { id, pair: true, bend: bend(at(one.a), at(one.b), hosts.length), source: `k:${one.a}`, target: `k:${one.b}`, problem: one.problem ? 1 : 0, label: one.problem ? "✕" : one.backends.join(", ") };
      const there = graph.getElementById(id);
      if (there.length) there.data(data); else graph.add({ group: "edges", data });
      graph.getElementById(id).toggleClass("near", one.a === chosen || one.b === chosen);
    }
  });
}

// Returns how far a link between two hosts is bent, so that it passes those that are in one row between them.
function bend(from, to, hosts) {
  if (hosts > MESHED || from.y !== to.y) return 0;
  return Math.sign(to.x - from.x) * Math.sign(-from.y || 1) * (18 + Math.abs(to.x - from.x) / 24);
}

// Marks what is chosen, and draws a trace's path.
function show(graph, state, route, trace, layout) {
  const step = (fits) => {
    const all = graph.nodes("[kind = 'container']");
    if (all.length <= DIMMED) all.filter(fits).addClass("dimmed");
  };
  graph.batch(() => {
    graph.remove("edge[hop], node[outside]");
    graph.elements(".chosen, .end, .dimmed, .passed, .stopped, .under").removeClass("chosen end dimmed passed stopped under");
    const node = (ref) => graph.getElementById(ref.startsWith("h:") && trace ? `k:${ref.slice(2)}` : ref);
    if (route.sel) {
      if (route.sel.startsWith("n:")) step((one) => one.data("network") !== route.sel.slice(2));
      else node(route.sel).addClass("chosen");
    }
    if (!route.b) return;
    for (const ref of [route.a, route.b]) node(ref).addClass("end");
    if (!trace) return;
    const there = path(state, trace.hops);
    const back = path(state, trace.reply_hops);
    layout.outside(graph, [...there, ...back]);
    walk(graph, there, "there");
    walk(graph, back, "back");
    const passed = new Set([...there, ...back]);
    step((one) => !passed.has(one.id()) && !one.hasClass("end"));
    if (trace.verdict === "broken") {
      const way = trace.reply_hops.length ? back : there;
      const last = way.at(-1);
      graph.getElementById(last).addClass("stopped");
      const goal = trace.reply_hops.length ? route.a : route.b;
      const target = goal.startsWith("h:") ? `k:${goal.slice(2)}` : goal;
      if (last && target !== last && graph.getElementById(target).length) {
        graph.add({ group: "edges", data: { id: "hop stopped", source: last, target, hop: "stopped", label: "✕" } });
      }
    }
  });
}

function walk(graph, nodes, way) {
  nodes.forEach((id, index) => {
    graph.getElementById(id).addClass("passed");
    if (!index) return;
    const before = graph.getElementById(nodes[index - 1]);
    before.edgesWith(graph.getElementById(id)).filter("[pair]").addClass("under");
    graph.add({ group: "edges", data: { id: `hop ${way} ${index}`, source: nodes[index - 1], target: id, hop: way } });
  });
}

// The colours are those of style.css, in light or dark.
function style(order) {
  const sheet = getComputedStyle(document.documentElement);
  const colour = (name) => sheet.getPropertyValue(`--${name}`).trim();
  const font = getComputedStyle(document.body).fontFamily;
  const levels = ["ok", "idle", "warn", "bad"];
  return [
    { selector: "node", style: { label: "data(label)", color: colour("ink"), "font-family": font, "font-size": 11, "min-zoomed-font-size": 6, "overlay-opacity": 0, "z-index-compare": "manual" } },
    { selector: "node[kind = 'host']", style: { shape: "round-rectangle", "corner-radius": 12, width: "data(width)", height: "data(height)", "background-color": colour("surface"), "border-width": 1.2, "border-color": colour("line"), "text-valign": "data(side)", "text-halign": "center", "text-margin-y": "data(margin)", "font-size": 13, "min-zoomed-font-size": 4, "font-weight": 600, "z-index": 0 } },
    ...levels.map((level) => ({ selector: `node[kind = 'host'][level = '${level}']`, style: level === "ok" ? { color: colour("ink") } : { "border-color": colour(level), "border-width": 2, color: colour(level) } })),
    { selector: "node[kind = 'kernel']", style: { shape: "round-rectangle", "corner-radius": 9, width: 86, height: 20, "background-color": colour("quiet"), "border-width": 1, "border-color": colour("line"), "text-valign": "center", "font-size": 10, color: colour("muted"), "z-index": 2 } },
    { selector: "node[kind = 'container']", style: { width: 18, height: 18, "background-color": colour("muted"), "border-width": 2, "border-color": colour("surface"), "text-valign": "bottom", "text-margin-y": 4, "z-index": 3 } },
    ...order.map((name, index) => ({ selector: `node[network = ${JSON.stringify(name)}]`, style: { "background-color": colour(`net-${index % 8}`) } })),
    { selector: "node[kind = 'outside']", style: { shape: "round-rectangle", width: 90, height: 24, "background-color": colour("quiet"), "border-width": 1, "border-style": "dashed", "border-color": colour("muted"), "text-valign": "center", "z-index": 2 } },
    { selector: "edge", style: { width: 1.4, "line-color": colour("line-strong"), "curve-style": "straight", "font-family": font, "font-size": 9, color: colour("muted"), "text-background-color": colour("ground"), "text-background-opacity": 1, "text-background-padding": 2, "overlay-opacity": 0, "z-index-compare": "manual", events: "no" } },
    { selector: "edge[pair]", style: { "curve-style": "unbundled-bezier", "control-point-distances": "data(bend)", label: "data(label)", "min-zoomed-font-size": 8, "z-index": 1 } },
    { selector: "edge.near", style: { "line-color": colour("accent"), color: colour("accent") } },
    { selector: "edge[problem = 1]", style: { "line-color": colour("bad"), "line-style": "dashed", color: colour("bad"), "font-size": 14 } },
    { selector: "edge[hop]", style: { "curve-style": "straight", width: 3, "line-color": colour("accent"), "target-arrow-color": colour("accent"), "target-arrow-shape": "triangle", "arrow-scale": 0.9, "z-index": 4 } },
    { selector: "edge[hop = 'back']", style: { "curve-style": "unbundled-bezier", "control-point-distances": 14, width: 1.6, "line-style": "dashed", opacity: 0.75 } },
    { selector: "edge[hop = 'stopped']", style: { "line-color": colour("bad"), "target-arrow-color": colour("bad"), "line-style": "dashed", label: "data(label)", color: colour("bad"), "font-size": 18 } },
    { selector: "edge.under", style: { label: "", opacity: 0.4 } },
    { selector: ".dimmed", style: { opacity: 0.25 } },
    { selector: "node.chosen, node.end", style: { "border-color": colour("accent"), "border-width": 3 } },
    { selector: "node.chosen[kind = 'container'], node.end[kind = 'container']", style: { width: 24, height: 24, "font-weight": 700 } },
    { selector: "node.passed[kind = 'kernel']", style: { "border-color": colour("accent"), color: colour("ink"), "border-width": 2 } },
    { selector: "node.stopped", style: { "border-color": colour("bad"), "border-width": 4, color: colour("bad") } },
  ];
}
