// The other views: addresses, events, doctor, peers, BGP, drift, migrations.
import { useState } from "preact/hooks";
import { CALM, send, useAnswer } from "/live.js";
import { byName, capacity, health, hostsOf, linkRef, links } from "/model.js";
import { MOST, levelOf, roundTrip, shownIn, untold, worstOf } from "/matrix.js";
import { Again, Ago, Answer, Badge, Empty, Fill, Heading, Problem, Table, html, kept } from "/parts.js";
import { address } from "/route.js";
import { t } from "/words.js";

export function Addresses({ state, route, go, colour }) {
  const check = useAnswer("/api/address-check");
  const blocks = hostsOf(state).flatMap((host) => host.leases.map((lease) => ({ ...lease, host: host.name })))
    .filter((one) => !route.network || one.network === route.network);
  const columns = [
    { name: "network", title: t("Network"), of: (one) => html`<span class="dot" style=${{ background: colour(one.network) }}></span>${one.network}` },
    { name: "host", title: t("Host"), of: (one) => one.host },
    { name: "address", title: t("Blocks"), of: (one) => html`<code>${one.prefixes.join(" ")}</code>` },
    { name: "used", title: t("Containers"), of: (one) => html`${one.prefixes.length ? html`<${Fill} used=${one.used} size=${capacity(one.prefixes)} />` : one.used}` },
  ];
  const networks = byName(state.networks).map((one) => one.name);
  return html`<${Heading} title=${t("Addresses")} about=${t("Who has which block, how full it is, and which addresses nobody uses.")}>
      <select aria-label=${t("Network")} value=${route.network} onChange=${(event) => go({ network: event.target.value })}>
        <option value="">${t("All networks")}</option>${networks.map((one) => html`<option key=${one} selected=${route.network === one}>${one}</option>`)}</select>
      <${Again} found=${check} /></${Heading}>
    <${Answer} found=${check}>${(found) => {
      const findings = ["leaked", "duplicate", "orphaned"].flatMap((kind) => found[kind].map((one) => ({ ...one, kind })));
      return findings.length
        ? findings.map((one, index) => html`<${Problem} key=${index}><b>${t(one.kind)}</b> <code>${one.address}</code> ${one.network} ${one.holder}: ${one.why}</${Problem}>`)
        : html`<p class="verdict ok"><${Badge} level="ok">${t("no leaks")}</${Badge}> ${t("Every address belongs to a running container on host {host}.", { host: state.about.here })}</p>`;
    }}</${Answer}>
    ${blocks.length ? html`<${Table} label=${t("Blocks")} columns=${columns} rows=${blocks} keyOf=${(one) => `${one.host} ${one.network}`} />` : html`<${Empty}>${t("No host has a block yet.")}</${Empty}>`}
    ${route.network && html`<${Holdings} network=${route.network} />`}`;
}

function Holdings({ network }) {
  const found = useAnswer("/api/addresses", { network });
  const columns = [
    { name: "address", title: t("Address"), of: (one) => html`<code>${one.address}</code>` },
    { name: "state", title: t("State"), of: (one) => t(one.state) },
    { name: "name", title: t("Holder"), of: (one) => one.holder }, { name: "host", title: t("Host"), of: (one) => one.host },
  ];
  return html`<h2>${t("Addresses in use")}</h2><${Answer} found=${found}>${({ total, addresses }) => html`
    <${Table} label=${t("Addresses in use")} columns=${columns} rows=${addresses} keyOf=${(one) => `${one.address} ${one.holder}`} />
    ${total > addresses.length && html`<p class="hint">${t("{n} more", { n: total - addresses.length })}</p>`}`}</${Answer}>`;
}

export function Events({ events, route, go }) {
  const q = route.q.toLowerCase();
  const found = events.filter((one) => `${one.type} ${one.what}`.toLowerCase().includes(q)).slice(-300).reverse();
  const columns = [
    { name: "when", title: t("When"), of: (one) => html`<${Ago} at=${one.at} />` },
    { name: "type", title: t("Type"), of: (one) => html`<span class="tag">${one.type}</span>` },
    { name: "what", title: t("What"), of: (one) => one.what },
  ];
  return html`<${Heading} title=${t("Events")} about=${t("What happened on the asked host, as it comes.")}>
      <input type="search" class="search" aria-label=${t("Search")} placeholder=${t("Search")} value=${route.q} onInput=${(event) => go({ q: event.target.value }, { step: false })} /></${Heading}>
    ${found.length ? html`<${Table} label=${t("Events")} columns=${columns} rows=${found} keyOf=${(one) => `${one.at} ${one.what}`} />` : html`<${Empty}>${t("Nothing matches.")}</${Empty}>`}`;
}

const LEVELS = { ok: "ok", warn: "warn", fail: "bad", skip: "idle" };
const ORDER = ["fail", "warn", "ok", "skip"];

function Checks({ checks }) {
  const columns = [
    { name: "state", title: t("State"), of: (one) => html`<${Badge} level=${LEVELS[one.status]}>${t(one.status)}</${Badge}>` },
    { name: "name", title: t("Check"), of: (one) => one.check },
    { name: "what", title: t("Found"), of: (one) => html`${one.detail}${one.fix && html`<p class="fix">${one.fix}</p>`}` },
  ];
  const rows = checks.map((one, index) => ({ ...one, index })).sort((a, b) => ORDER.indexOf(a.status) - ORDER.indexOf(b.status) || a.index - b.index);
  return html`<${Table} label=${t("Checks")} columns=${columns} rows=${rows} keyOf=${(one) => one.index} />`;
}

export function Doctor({ state }) {
  const found = useAnswer("/api/doctor");
  return html`<${Heading} title=${t("Doctor")} about=${t("What is in the way on host {host}, and how to fix it.", { host: state.about.here })}><${Again} found=${found} /></${Heading}>
    <${Answer} found=${found}>${(checks) => html`<${Checks} checks=${checks} />`}</${Answer}>`;
}

export function Peers({ state }) {
  const measured = useAnswer("/api/paths");
  const [probe, setProbe] = useState({ checks: null, error: "", busy: false });
  const hosts = hostsOf(state);
  const shown = shownIn(state.about.here, hosts, measured.answer?.hosts ?? []);
  const run = () => {
    setProbe((now) => ({ ...now, busy: true }));
    send("/api/peers").then((checks) => setProbe({ checks, error: "", busy: false }), (error) => setProbe({ checks: null, error: error.message, busy: false }));
  };
  return html`<${Heading} title=${t("Peers")} about=${t("Round trip, loss and MTU from each host to each other one. All hosts ping their peers every few seconds; a probe tries what their networks need.")}>
      <${Again} found=${measured} />
      ${state.about.sends ? html`<button type="button" class="strong" disabled=${probe.busy} onClick=${run}>${probe.busy ? t("Probing …") : t("Probe all hosts")}</button>`
        : html`<small class="hint">${t("Other hosts' measurements and probes: root only (sudo linkspan web)")}</small>`}</${Heading}>
    ${probe.error && html`<${Problem}>${probe.error}</${Problem}>`}
    ${probe.checks && html`<${Checks} checks=${probe.checks} />`}
    <${Matrix} state=${state} hosts=${shown} measured=${measured.answer} failed=${measured.error} />
    ${measured.error && html`<${Problem}>${measured.error}</${Problem}>`}
    ${hosts.length > MOST && html`<p class="hint">${t("{n} more", { n: hosts.length - MOST })}</p>`}`;
}

const Matrix = kept(({ state, hosts, measured, failed }) => {
  const pairs = new Map(links(state, hosts).flatMap((one) => [[`${one.a} ${one.b}`, one], [`${one.b} ${one.a}`, one]]));
  const paths = worstOf(measured?.paths ?? []);
  return html`<div class="wide" tabindex="0" role="region" aria-label=${t("Matrix of hosts")}><table class="matrix">
    <thead><tr><th scope="col"><small>${t("from")} ↓ ${t("to")} →</small></th>${hosts.map((one) => html`<th key=${one.id} scope="col">${one.name}</th>`)}</tr></thead>
    <tbody>${hosts.map((row) => html`<tr key=${row.id}><th scope="row">${row.name} <${Badge} level=${health(state, row).level}>${t(health(state, row).word)}</${Badge}></th>
      ${hosts.map((column) => html`<${Cell} key=${column.id} state=${state} link=${address({ view: "hosts", sel: linkRef(row.name, column.name) })} pair=${pairs.get(`${row.name} ${column.name}`)} same=${row === column}
        path=${paths.get(`${row.name} ${column.name}`)} untold=${untold(measured, failed, state.about.sends, row.name)} />`)}</tr>`)}</tbody>
  </table></div>`;
});

// One direction between two hosts: the worst network's round trip and loss, and how large a container's packet may be.
function Cell({ state, link, pair, same, path, untold: reason }) {
  if (same) return html`<td class="same"><span aria-hidden="true">·</span></td>`;
  if (!pair) return html`<td title=${t("They have no network in common.")}>–</td>`;
  const networks = pair.networks.map((name) => state.networks[name]);
  const mtu = html`<small>${pair.backends.join(", ")} · MTU ${Math.min(...networks.map((one) => one.mtu))}</small>`;
  if (!path) {
    const { word, why, level } = pair.problem ? { word: "cut off", why: pair.problem, level: "bad" } : reason;
    return html`<td class="unknown" title=${why}><a href=${link}>${level ? html`<${Badge} level=${level}>${t(word)}</${Badge}>` : t(word)}${mtu}</a></td>`;
  }
  const level = levelOf(path, pair.problem);
  return html`<td class=${level} title=${pair.problem || `${path.network} ${path.address}`}><a href=${link}><b>${level === "bad" ? t("cut off") : roundTrip(path, pair.problem)}</b>
    ${path.loss > 0 && html`<${Badge} level=${level}>${t("{n} % lost", { n: Math.round(100 * path.loss) })}</${Badge}>`}${mtu}</a></td>`;
}

export function Bgp({ state, changes, pick, marks }) {
  const found = useAnswer("/api/bgp", {}, true, changes, CALM);
  const columns = [
    { name: "name", title: t("Peer"), of: (one) => html`${one.peer} <small>AS ${one.remote_as}</small>` },
    { name: "what", title: t("State"), of: (one) => html`<${Badge} level=${one.state === "established" ? "ok" : one.why ? "bad" : "warn"}>${one.state}</${Badge}>
      ${one.why && html`<p class="fix">${one.why}</p>`}` },
    { name: "address", title: t("Address"), of: (one) => html`<code>${one.address}</code>` },
  ];
  return html`<${Heading} title="BGP" about=${t("Sessions of host {host}. Open one to see why it is down.", { host: state.about.here })}><${Again} found=${found} /></${Heading}>
    <${Answer} found=${found}>${(all) => all.length
      ? html`<${Table} label="BGP" columns=${columns} rows=${all} keyOf=${(one) => one.peer} open=${(one) => pick(`b:${one.peer}`)} selected=${marks} />`
      : html`<${Empty}>${t("No network here uses BGP.")}</${Empty}>`}</${Answer}>`;
}

export function Drift({ state }) {
  const found = useAnswer("/api/drift");
  const columns = [
    { name: "state", title: t("Repair"), of: (one) => html`<span class="tag">${t(one.what)}</span>` },
    { name: "type", title: t("Kind"), of: (one) => one.kind }, { name: "what", title: t("Object"), of: (one) => html`<code>${one.key}</code>` },
    { name: "inside", title: t("Inside"), of: (one) => one.inside || "–" },
  ];
  return html`<${Heading} title=${t("Drift")} about=${t("What differs on host {host} between desired and observed.", { host: state.about.here })}><${Again} found=${found} /></${Heading}>
    <${Answer} found=${found}>${(diff) => {
      const rows = [...diff.put, ...diff.delete].map((one, index) => ({ ...one, index }));
      return rows.length ? html`<${Table} label=${t("Drift")} columns=${columns} rows=${rows} keyOf=${(one) => one.index} />`
        : html`<p class="verdict ok"><${Badge} level="ok">${t("no drift")}</${Badge}> ${t("This host matches its desired state.")}</p>`;
    }}</${Answer}>`;
}

export function Migrations({ state }) {
  const moving = byName(state.networks).filter((one) => one.migration);
  return html`<${Heading} title=${t("Migrations")} about=${t("Networks that change their backend while their containers run.")} />
    ${moving.length ? moving.map((one) => html`<${Progress} key=${one.name} network=${one} />`) : html`<${Empty}>${t("No network migrates.")}</${Empty}>`}`;
}

function Progress({ network }) {
  // Asked again when a host has switched.
  const found = useAnswer(`/api/migration/${encodeURIComponent(network.name)}`, {}, true, [network.migration, network.not_switched]);
  const columns = [
    { name: "host", title: t("Host"), of: (one) => one.host },
    ...["receives", "sends"].map((name) => ({ name, title: t(name), of: (one) => [one[name]].flat().join(", ") })),
    { name: "state", title: t("State"), of: (one) => html`<${Badge} level=${one.switched ? "ok" : "warn"}>${one.switched ? t("switched") : t("not yet")}</${Badge}>` },
  ];
  return html`<h2>${network.name}: ${network.backend} → ${network.migration.backend}</h2><${Again} found=${found} />
    <${Answer} found=${found}>${(told) => html`<${Table} label=${network.name} columns=${columns} rows=${told.progress ?? []} keyOf=${(one) => one.host} />`}</${Answer}>`;
}
