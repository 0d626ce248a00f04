// The trace between two ends, hop by hop, both ways.
import { useEffect, useRef, useState } from "preact/hooks";
import { ask, send } from "/live.js";
import { refName, traceName } from "/model.js";
import { Ago, Badge, Problem, html } from "/parts.js";
import { language, t } from "/words.js";

const VERDICTS = { reachable: ["ok", "Reachable"], broken: ["bad", "Broken"], unknown: ["warn", "Unknown"] };

const AGAIN = 10_000; // milliseconds until a trace that is looked at is asked again

const NONE = { found: null, error: "", busy: false, live: false, packet: null };

// Returns {found, error, busy, live, packet, sendPacket, again} of the trace between the ends in the address bar. It is
// asked again when hosts or problems change (`changes` is different then), and from time to time: what was true may be
// so no more. The result of a real packet (`live`) stays until something changes, be it the page's language, or somebody
// asks again; after that its verdict and its time are in `packet`.
export function useTrace(state, route, changes) {
  const [trace, setTrace] = useState(NONE);
  const [round, setRound] = useState(0);
  const ends = route.a && route.b && state ? { source: traceName(state, route.a), target: traceName(state, route.b), port: route.port } : null;
  const asked = JSON.stringify(ends);
  const now = useRef({});
  const valid = JSON.stringify([changes, language()]);
  now.current = { asked, valid, ...trace };
  const choice = useRef(0);
  // Answers count that were asked for since these ends were chosen; a walk's never replaces that of a real packet.
  const run = (asking, live) => {
    setTrace((before) => ({ ...before, busy: true }));
    const chosen = choice.current;
    const counts = () => now.current.asked === asked && choice.current === chosen && (live || !now.current.live);
    asking.then(
      (found) => {
        if (!counts()) return;
        const packet = live ? { verdict: found.verdict, listens: found.listens, at: Date.now() / 1000 } : now.current.packet;
        const old = live && now.current.valid !== valid; // something has changed since it was sent
        setTrace({ found, error: "", busy: false, live: live && !old, packet });
        if (old) setRound((number) => number + 1);
      },
      (error) => counts() && setTrace((before) => ({ ...before, found: live ? before.found : null, error: error.message, busy: false })),
    );
  };
  useEffect(() => {
    choice.current += 1;
    setTrace(NONE);
  }, [asked]);
  useEffect(() => setTrace((before) => (before.live ? { ...before, live: false } : before)), [valid]);
  useEffect(() => {
    if (ends && !trace.live) run(ask("/api/trace", ends), false);
  }, [asked, round, trace.live, valid]);
  useEffect(() => {
    if (!ends) return undefined;
    const again = () => document.visibilityState === "visible" && !now.current.busy && setRound((number) => number + 1);
    const timer = setInterval(again, AGAIN);
    return () => clearInterval(timer);
  }, [asked]);
  return {
    ...trace,
    sendPacket: () => run(send("/api/trace", ends), true),
    again: () => {
      setTrace((before) => ({ ...before, live: false }));
      setRound((number) => number + 1);
    },
  };
}

export function Trace({ state, route, go, trace, close }) {
  const [way, setWay] = useState("there");
  const { found } = trace;
  const broken = found?.verdict === "broken" && (found.reply_hops.length ? "back" : "there");
  useEffect(() => setWay(broken || "there"), [route.a, route.b, broken]);
  const swap = () => go({ a: route.b, b: route.a });
  const ways = found ? { there: found.hops, back: found.reply_hops } : {};
  const shown = ways[way]?.length ? way : "there";
  return html`<section class="panel trace" aria-label=${t("Trace")}>
    <header>
      <h2><span class="clip">${refName(state, route.a)}</span> <span aria-label=${t("to")}>→</span> <span class="clip">${refName(state, route.b)}</span></h2>
      <div class="actions">
        <input class="port" aria-label=${t("Port")} placeholder=${t("port: 80/tcp")} value=${route.port} maxlength="20"
          onChange=${(event) => go({ port: event.target.value.trim() })} />
        <button type="button" class="quiet" onClick=${swap}>${t("Swap")}</button>
        <button type="button" class="quiet" onClick=${trace.again} disabled=${trace.busy}>${t("Again")}</button>
        <button type="button" class="close" aria-label=${t("Close")} onClick=${close}>×</button>
      </div>
    </header>
    <div aria-live="polite">
      ${trace.error && html`<${Problem}>${trace.error}</${Problem}>`}
      ${!found && trace.busy && html`<p class="busy">${t("Asking the kernels on the way …")}</p>`}
      ${found && html`<${Verdict} found=${found} port=${route.port} />`}
    </div>
    ${trace.packet && html`<p class="hint packet">${t("The last real packet")}: <${Badge} level=${verdictOf(trace.packet)[0]}>${t(verdictOf(trace.packet)[1])}</${Badge}> <${Ago} key=${trace.packet.at} at=${trace.packet.at} /></p>`}
    ${found && html`
      <div class="ways" role="group" aria-label=${t("Direction")}>
        ${Object.entries(ways).filter(([, hops]) => hops.length).map(([name, hops]) => html`
          <button type="button" key=${name} aria-pressed=${shown === name} onClick=${() => setWay(name)}>${t(name)} <small>${hops.length}</small></button>`)}
        <span class="space"></span>
        <${Packet} state=${state} trace=${trace} />
      </div>
      <${Hops} hops=${ways[shown]} reason=${broken === shown ? found.reason : ""} />`}
  </section>`;
}

// Returns how good a verdict is, and its word. A port at which nothing listens is reached, and no good.
function verdictOf({ verdict, listens }) {
  const [level, word] = VERDICTS[verdict] ?? VERDICTS.unknown;
  return [level === "ok" && listens === false ? "warn" : level, word];
}

function Verdict({ found, port }) {
  const refused = found.verdict === "reachable" && found.listens === false;
  const [level, word] = verdictOf(found);
  return html`<div class=${`verdict ${level}`}>
    <${Badge} level=${level}>${t(word)}</${Badge}>
    ${found.verdict === "reachable" && found.path_mtu > 0 && html`<span>${t("with packets of up to {n} bytes", { n: found.path_mtu })}</span>`}
    ${refused && html`<strong>${t("but nothing listens on port {port}: the answer is a refusal", { port })}</strong>`}
    ${found.verdict === "broken" && html`<span>${t("at {place}", { place: found.broken_at })}: ${found.reason}</span>`}
    ${found.verdict === "reachable" && found.reason && html`<span>${found.reason}</span>`}
    ${found.verdict === "unknown" && html`<ul>${found.unknown.map((one) => html`<li key=${one.at}><code>${one.at}</code> ${one.why}</li>`)}</ul>`}
  </div>`;
}

function Packet({ state, trace }) {
  if (!state.about.sends) return html`<small class="hint">${t("Real packets: root only (sudo linkspan web)")}</small>`;
  return html`<button type="button" class="strong" disabled=${trace.busy} onClick=${trace.sendPacket}>${t("Send a real packet")}</button>`;
}

// The hops of one way; the last one is broken if there is a reason.
function Hops({ hops, reason }) {
  const end = reason ? hops.length - 1 : -1;
  const list = useRef(null);
  useEffect(() => list.current.querySelector(".broken")?.scrollIntoView({ block: "nearest" }), [hops]);
  return html`<ol class="hops" ref=${list} tabindex="0" aria-label=${t("Hops")}>${hops.map((hop, index) => html`
    <li key=${index} class=${index === end ? "broken" : ""}>
      <div class="place"><b>${hop.host}</b><span>${hop.namespace === "host" ? t("kernel") : hop.namespace}</span>
        ${hop.device && html`<code>${hop.device}${hop.port && ` › ${hop.port}`}</code>`}</div>
      <div class="what">
        <p class=${index === end && hop.detail === reason ? "reason" : ""}><strong>${t(hop.action)}</strong> ${hop.detail}</p>
        ${index === end && hop.detail !== reason && html`<p class="reason">${reason}</p>`}
        <p class="headers" aria-label=${t("Headers")}>${hop.headers.map((one, number) => html`<code key=${number}>${one}</code>`)}</p>
      </div>
      <div class="more">
        ${hop.mtu > 0 && html`<span title=${t("The largest packet that has passed up to here")}>MTU ${hop.mtu}</span>`}
        ${hop.seen !== null && html`<${Badge} level=${hop.seen ? "ok" : "warn"}>${hop.seen ? t("seen") : t("not seen")}</${Badge}>`}
      </div>
    </li>`)}</ol>`;
}
