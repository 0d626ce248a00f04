// The graph: hosts as boxes, their containers in them, what joins the hosts, and the path of a trace.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Drawing } from "/drawing.js";
import { Layout } from "/layout.js";
import { CALM, useAnswer } from "/live.js";
import { containersOf, hostsOf, linkRef, links, path } from "/model.js";
import { html } from "/parts.js";
import { t } from "/words.js";

const MESHED = 8; // hosts whose links are all drawn; with more, only links of the chosen host, or with a problem

export function Graph({ state, sel, a, b, trace, pick, order }) {
  const box = useRef(null);
  const drawing = useRef(null);
  const layout = useMemo(() => new Layout(), []);
  const chosen = useRef(pick);
  chosen.current = pick;
  const hosts = hostsOf(state);
  const link = sel.startsWith("l:") ? sel : ""; // chosen, between two hosts
  const host = sel.startsWith("h:") ? sel.slice(2) : link.slice(2).split(" ")[0];
  const [asked, setAsked] = useState(""); // the host of a large cluster whose containers are drawn
  const found = useAnswer("/api/containers", { host: asked }, Boolean(asked), state.about.total, CALM);
  const part = asked && found.answer ? found.answer.containers : null;
  const left = part ? found.answer.total - Object.keys(part).length : 0; // the server gives no more at once
  const containers = useMemo(() => (state.about.complete ? containersOf(state.containers) : part ? containersOf(part) : []), [state.containers, part]);
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);

  useEffect(() => {
    drawing.current = new Drawing(box.current, (ref) => chosen.current(ref));
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const follow = (event) => setDark(event.matches);
    scheme.addEventListener("change", follow);
    return () => { scheme.removeEventListener("change", follow); drawing.current.end(); };
  }, []);

  useEffect(() => drawing.current.style(order), [dark, order.join("\n")]);

  useEffect(() => {
    drawing.current.place(layout.elements(hosts, containers, Object.values(state.routers), state.about.here), state, containers.length > 0);
  }, [state, containers]);

  useEffect(() => {
    const among = hosts.length <= MESHED ? null : new Set([host, state.about.here]);
    const pairs = links(state, hosts, among).filter((one) => hosts.length <= MESHED || one.problem || one.a === host || one.b === host);
    const near = (one) => (link ? linkRef(one.a, one.b) === link : one.a === host || one.b === host);
    drawing.current.join(pairs, near, hosts.length <= MESHED);
  }, [state, host, link, containers]);

  useEffect(() => {
    const there = b && trace ? path(state, trace.hops, containers) : [];
    const back = b && trace ? path(state, trace.reply_hops, containers) : [];
    const ends = b ? [a, b] : [];
    drawing.current.mark({ chosen: b ? "" : sel, ends, there, back, stopped: b && trace?.verdict === "broken" ? stopped(trace, there, back, ends) : null });
  }, [state, sel, a, b, trace, containers]);

  const large = !state.about.complete && hosts.find((one) => one.name === host);
  const text = t("Graph of {hosts} hosts and {containers} containers; the table has all of it.", { hosts: hosts.length, containers: state.about.total });
  return html`<section class="map" aria-label=${t("Graph")}>
    <div class="canvas" ref=${box} role="img" aria-label=${text}></div>
    <div class="tools">
      ${large && asked !== host && html`<button type="button" class="quiet" onClick=${() => setAsked(host)}>${t("Show its containers")} <small>${large.containers}</small></button>`}
      ${left > 0 && html`<small class="hint">${t("{n} more", { n: left })}</small>`}
      <button type="button" class="quiet" aria-label=${t("Larger")} onClick=${() => drawing.current.zoom(1.3)}>+</button>
      <button type="button" class="quiet" aria-label=${t("Smaller")} onClick=${() => drawing.current.zoom(1 / 1.3)}>−</button>
      <button type="button" class="quiet" onClick=${() => drawing.current.show()}>${t("Fit")}</button>
    </div>
    <ul class="legend" aria-hidden="true">${order.slice(0, 8).map((name, index) => html`<li key=${name}><span class="dot" style=${{ background: `var(--net-${index % 8})` }}></span>${name}</li>`)}</ul>
  </section>`;
}

// Returns {at, target}: where a broken trace ends, and where it was to arrive.
function stopped(trace, there, back, [a, b]) {
  const way = trace.reply_hops.length ? back : there;
  const goal = trace.reply_hops.length ? a : b;
  return { at: way.at(-1), target: goal.startsWith("h:") ? `k:${goal.slice(2)}` : goal };
}
