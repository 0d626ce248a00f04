// The page: its frame, and which view is in it.
import { Component, render } from "preact";
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Details } from "/details.js";
import { useLive } from "/live.js";
import { byName, changesOf, health, hostsOf, problemsIn } from "/model.js";
import { Badge, html, kept } from "/parts.js";
import { MAPPED, address, here, useRoute } from "/route.js";
import { Containers, Hosts, Networks } from "/tables.js";
import { Trace, useTrace } from "/trace.js";
import { Addresses, Bgp, Doctor, Drift, Events, Migrations, Peers } from "/views.js";
import { LANGUAGES, language, setLanguage, t, useWords } from "/words.js";

const VIEWS = {
  containers: ["Containers", Containers], hosts: ["Hosts", Hosts], networks: ["Networks", Networks],
  addresses: ["Addresses", Addresses], events: ["Events", Events], doctor: ["Doctor", Doctor], peers: ["Peers", Peers],
  bgp: ["BGP", Bgp], drift: ["Drift", Drift], migrations: ["Migrations", Migrations],
};
const COLOURS = 8; // in style.css

function App() {
  useWords();
  const live = useLive();
  const [route, go] = useRoute();
  const problems = useMemo(() => live.state && problemsIn(live.state.problems, language()), [live.state?.problems, language()]);
  const state = useMemo(() => live.state && { ...live.state, problems }, [live.state, problems]);
  const changes = useMemo(() => (state ? changesOf(state) : ""), [state]);
  const trace = useTrace(state, route, changes);
  const main = useRef(null);
  useEffect(() => {
    document.title = `${t(VIEWS[route.view][0])} · linkspan`;
  }, [route.view, language()]);
  const order = useMemo(() => (state ? byName(state.networks).map((one) => one.name) : []), [state?.networks]);
  const names = order.join("\n");
  const colour = useCallback((network) => `var(--net-${Math.max(0, order.indexOf(network)) % COLOURS})`, [names]);
  // A first choice shows what it is; a second one traces from the first to it.
  const pick = useCallback((ref) => {
    const { sel, b } = here(); // a second choice may come before the first one is drawn
    if (traceable(ref) && traceable(sel) && sel !== ref && !b) go({ a: sel, b: ref, sel: "" });
    else go({ sel: ref, a: "", b: "" });
  }, []);
  if (state === null) return html`<${Waiting} link=${live.link} />`;

  const close = () => go({ sel: "", a: "", b: "", port: "" });
  const kind = { containers: "c:", hosts: "h:", networks: "n:", bgp: "b:" }[route.view];
  const marks = Object.create(null); // names may be those that objects inherit
  for (const [ref, mark] of [[route.sel, "selected"], [route.a, "end from"], [route.b, "end to"]]) {
    if (ref.startsWith(kind)) marks[ref.slice(2)] = mark;
  }
  const View = VIEWS[route.view][1];
  const mapped = MAPPED.includes(route.view);
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>${t("To the content")}</a>
    <${Bar} state=${state} live=${live} route=${route} />
    <${Nav} state=${state} route=${route} />
    <main id="main" tabindex="-1" ref=${main} class=${`${mapped ? "mapped" : ""} ${route.sel || route.b ? "opened" : ""}`}
      onKeyDown=${(event) => event.key === "Escape" && close()}>
      <section class="list"><${View} ...${{ state, changes, events: live.events, route, go, pick, marks, colour }} /></section>
      ${mapped && html`<${LaterGraph} ...${{ state, sel: route.sel, a: route.a, b: route.b, trace: trace.found, pick, order }} />`}
      ${route.b ? html`<${Trace} ...${{ state, route, go, trace, close }} />`
        : route.sel && html`<${Details} state=${state} changes=${changes} refOf=${route.sel} close=${close} />`}
    </main>`;
}

// A container or a host is an end of a trace.
function traceable(ref) {
  return ref.startsWith("c:") || ref.startsWith("h:");
}

// What is shown if a view fails: the address leads to it, so a reload of the same one would fail again.
class Guarded extends Component {
  state = { error: null };

  componentDidCatch(error) {
    this.setState({ error });
    console.error(error);
  }

  render({ children }, { error }) {
    if (error === null) return children;
    return html`<div class="waiting" role="alert"><p>${t("The page failed: {why}", { why: String(error?.message ?? error) })}</p>
      <p><button type="button" class="quiet" onClick=${() => { location.hash = "#/containers"; location.reload(); }}>${t("Load it again")}</button></p></div>`;
  }
}

// The graph comes after the table: its library is most of the page.
const LaterGraph = kept((properties) => {
  const [Graph, setGraph] = useState(null);
  useEffect(() => {
    import("/graph.js").then((found) => setGraph(() => found.Graph));
  }, []);
  return Graph ? html`<${Graph} ...${properties} />` : html`<section class="map"></section>`;
});

function Waiting({ link }) {
  const words = { out: t("The session is over. Start `linkspan web` again, or press Enter where it runs: it prints another link."), lost: t("`linkspan web` does not answer.") };
  return html`<p class="waiting" role="status">${words[link] ?? t("Asking the agent …")}</p>`;
}

function Bar({ state, live, route }) {
  const { about } = state;
  return html`<header class="bar">
    <a class="brand" href=${address({ ...route, view: "containers", sel: "", a: "", b: "" })}><img src="/icon.svg" alt="" width="24" height="24" />linkspan</a>
    <span class="asked clip">${about.lab ? t("lab {lab}, host {host}", { lab: about.lab, host: about.here }) : about.here}</span>
    <span class="space"></span>
    <${Condition} ...${{ state, live, route }} />
    <label class="language"><span class="hidden">${t("Language")}</span><select onChange=${(event) => setLanguage(event.target.value)}>
      ${Object.entries(LANGUAGES).map(([code, name]) => html`<option key=${code} value=${code} lang=${code} selected=${language() === code}>${name}</option>`)}
    </select></label>
  </header>`;
}

// How the cluster is, in one word, which a screen reader says when it changes; the problems themselves have words that tick.
function Condition({ state, live, route }) {
  const { about } = state;
  const bad = hostsOf(state).filter((one) => !["ok", "idle"].includes(health(state, one).level)).length;
  const count = Object.keys(state.problems).length;
  const why = (english) => about.said[language()] ?? english;
  const away = live.link === "lost" ? { level: "bad", word: t("`linkspan web` does not answer") }
    : live.link === "out" ? { level: "bad", word: t("The session is over"), fix: t("Start `linkspan web` again, or press Enter where it runs: it prints another link.") }
    : about.away ? { level: "bad", word: t("The agent does not answer"), title: why(about.away) }
    : about.waiting ? { level: "warn", word: t("The agent waits for its store"), title: why(about.waiting) } : null;
  const problems = !away && count > 0;
  const { level, word, title, fix } = away
    ?? (problems ? { level: about.ok ? "warn" : "bad", word: t(count === 1 ? "1 problem" : "{n} problems", { n: count }) }
      : bad ? { level: "warn", word: t("{n} hosts silent", { n: bad }) } : { level: "ok", word: t("all well") });
  const badge = html`<${Badge} level=${level} title=${title}>${word}</${Badge}>`;
  return html`<span class="condition">
    <span role="status" class=${problems ? "hidden" : ""}>${problems ? word : badge}${fix && html` <small>${fix}</small>`}</span>
    ${problems && html`<${Problems} all=${state.problems} route=${route}>${badge}</${Problems}>`}</span>`;
}

// The list of problems, below a badge. Escape, a press elsewhere and a change of what the page shows close it.
function Problems({ all, route, children }) {
  const box = useRef(null);
  useEffect(() => {
    const shut = (event) => {
      if (!box.current.open || (event.type === "keydown" ? event.key !== "Escape" : box.current.contains(event.target))) return;
      box.current.open = false;
      if (event.type !== "keydown") return;
      event.stopPropagation(); // the panel stays
      box.current.firstElementChild.focus();
    };
    for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, shut, true);
    return () => ["keydown", "pointerdown"].forEach((kind) => removeEventListener(kind, shut, true));
  }, []);
  useEffect(() => { box.current.open = false; }, [route]);
  return html`<details class="problems" ref=${box}><summary>${children}</summary>
    <ul>${Object.entries(all).map(([key, one]) => html`<li key=${key}>${[one.host, one.network].filter(Boolean).map((name) => html`<b key=${name}>${name}</b> `)}${one.why}</li>`)}</ul></details>`;
}

function Nav({ state, route }) {
  const counts = {
    containers: state.about.total, hosts: hostsOf(state).length, networks: Object.keys(state.networks).length,
    migrations: Object.values(state.networks).filter((one) => one.migration).length || "",
  };
  const link = (view) => address({ ...route, view, q: "", ...(MAPPED.includes(view) ? {} : { sel: "", a: "", b: "" }) });
  return html`<nav class="views" aria-label=${t("Views")}>${Object.entries(VIEWS).map(([view, [title]]) => html`
    <a key=${view} href=${link(view)} aria-current=${route.view === view ? "page" : undefined}>${t(title)}<small>${counts[view] ?? ""}</small></a>`)}</nav>`;
}

const place = document.getElementById("app");
place.textContent = "";
render(html`<${Guarded}><${App} /></${Guarded}>`, place);
