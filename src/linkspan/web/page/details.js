// What one object is: its facts, the commands that make it, who owns it, and its last repairs.
import { useState } from "preact/hooks";
import { CALM, useAnswer } from "/live.js";
import { bare, health, hostsOf, itemOf, label, links, problemsOf } from "/model.js";
import { roundTrip } from "/matrix.js";
import { Again, Ago, Answer, Badge, Empty, Facts, Problem, html } from "/parts.js";
import { t } from "/words.js";

export function Details({ state, changes, refOf, close }) {
  const name = refOf.slice(2);
  const views = { "c:": Container, "h:": Host, "n:": Network };
  if (refOf.startsWith("l:")) return html`<section class="panel details" aria-label=${t("Details")}><${Link} key=${refOf} state=${state} names=${name.split(" ")} close=${close} /></section>`;
  if (refOf.startsWith("b:")) return html`<section class="panel details" aria-label=${t("Details")}><${Session} key=${refOf} peer=${name} changes=${changes} close=${close} /></section>`;
  const of = { "c:": itemOf(state.containers, name), "h:": Object.values(state.hosts).find((one) => one.name === name && one.state !== "removed"), "n:": itemOf(state.networks, name) }[refOf.slice(0, 2)];
  const View = views[refOf.slice(0, 2)];
  return html`<section class="panel details" aria-label=${t("Details")}>
    ${of && View
      ? html`<${View} key=${refOf} ...${{ state, one: of, close }} />`
      : View === Container && !state.about.complete
      ? html`<${Asked} key=${refOf} ...${{ state, name, close }} />`
      : html`<${Head} title=${name} close=${close} /><${Empty}>${t("It is gone.")}</${Empty}>`}
  </section>`;
}

function Head({ title, close, children }) {
  return html`<header><h2><span class="clip" title=${title}>${title}</span></h2><div class="actions">${children}
    <button type="button" class="close" aria-label=${t("Close")} onClick=${close}>×</button></div></header>`;
}

// A container of a large cluster: the server has it.
function Asked({ state, name, close }) {
  const found = useAnswer("/api/containers", { search: name.split("/")[0] }, true, state.about.total, CALM);
  return html`<${Answer} found=${found}>${({ containers }) => itemOf(containers, name)
    ? html`<${Container} ...${{ state, one: containers[name], close }} />`
    : html`<${Head} title=${name} close=${close} /><${Empty}>${t("It is gone.")}</${Empty}>`}</${Answer}>`;
}

function Container({ state, one, close }) {
  const ports = (one.ports ?? []).map((port) => `${port.host_ip || "*"}:${port.host_port} → ${port.port}/${port.protocol}`);
  const labels = Object.entries(one.labels ?? {}).map(([key, value]) => `${key}=${value}`);
  return html`<${Head} title=${label(one)} close=${close} />
    <p class="hint">${t("Choose a second container or host to trace a packet to it.")}</p>
    <${Facts} pairs=${[
      [t("Network"), one.network], [t("Host"), one.host], [t("Addresses"), html`<code>${one.addresses.join(" ")}</code>`],
      [t("Interface"), html`<code>${one.ifname}</code>`], [t("On the host"), one.host_ifname && html`<code>${one.host_ifname}</code>`],
      ["MAC", one.mac && html`<code>${one.mac}</code>`], ["MTU", one.mtu], [t("Published ports"), ports.join(", ")],
      [t("Labels"), labels.join(", ")], [t("Owner"), one.managed || "linkspan"], ["ID", html`<code class="clip">${one.id}</code>`],
    ]} />
    <${Repairs} state=${state} fits=${(heal) => heal.inside === label(one) || (one.host_ifname && heal.key.includes(one.host_ifname))} />
    <${Commands} host=${one.host} word=${`container ${one.id.slice(0, 12)}, interface ${one.ifname}`} />`;
}

function Host({ state, one, close }) {
  const now = health(state, one);
  const problems = problemsOf(state, one.name);
  return html`<${Head} title=${one.name} close=${close}><${Badge} level=${now.level}>${t(now.word)}</${Badge}></${Head}>
    ${problems.map((problem, index) => html`<${Problem} key=${index}>${problem.network && html`<b>${problem.network}</b> `}${problem.why}</${Problem}>`)}
    <${Facts} pairs=${[
      [t("Underlay"), one.underlay && html`<code>${one.underlay.ifname} ${one.underlay.addresses.join(" ")}</code>`],
      [t("Last seen"), one.last_seen && html`<${Ago} at=${one.last_seen} />`],
      [t("Version"), one.version], [t("Containers"), one.containers],
      [t("Blocks"), one.leases.map((lease) => html`<div key=${lease.network}><b>${lease.network}</b> <code>${lease.prefixes.join(" ")}</code></div>`)],
      [t("Settings"), Object.entries(one.settings).map(([key, value]) => `${key}=${value}`).join(", ")], ["ID", html`<code class="clip">${one.id}</code>`],
    ]} />
    ${one.name === state.about.here && html`<${Repairs} state=${state} fits=${() => true} />`}
    <${Commands} host=${one.name} word="this host" />`;
}

function Network({ state, one, close }) {
  const options = Object.entries(one.options).map(([key, value]) => `${key}=${value}`);
  return html`<${Head} title=${one.name} close=${close}><span class="tag">${one.backend}</span></${Head}>
    ${one.migration && html`<p class="hint">${t("It migrates to {backend}.", { backend: one.migration.backend })}</p>`}
    <${Facts} pairs=${[
      [t("Pools"), html`<code>${one.pools.join(" ")}</code>`], ["MTU", one.mtu], [t("Containers"), one.containers],
      [t("Free addresses here"), one.free], [t("Options"), options.join(", ")],
      [t("Internal"), one.internal ? t("yes") : t("no")], [t("Policy"), one.policy], [t("Addresses from"), one.ipam],
    ]} />
    <${Repairs} state=${state} fits=${(heal) => heal.key.includes(one.name)} />
    <${Commands} host=${state.about.here} word=${`network ${one.name}`} network=${one.name} />`;
}

// What joins two hosts: their networks in common, what each has measured, and the commands on both.
function Link({ state, names, close }) {
  const found = useAnswer("/api/paths");
  const pair = hostsOf(state).filter((one) => names.includes(one.name));
  const [one] = links(state, pair);
  const [a, b] = pair;
  const title = names.join(" ↔ ");
  if (!one) return html`<${Head} title=${title} close=${close} /><${Empty}>${t("They have no network in common.")}</${Empty}>`;
  const ways = [[a, b], [b, a]];
  const other = a.name === state.about.here ? b : a; // repairs are those of the asked host
  const places = [...(other.underlay?.addresses.map(bare) ?? []), ...other.leases.flatMap((lease) => lease.prefixes)];
  const told = (from, to, network) => found.answer?.paths.find((path) => path.host === from.name && path.peer === to.name && path.network === network);
  return html`<${Head} title=${title} close=${close}>${one.problem && html`<${Badge} level="bad">${t("cut off")}</${Badge}>`}</${Head}>
    ${one.problem && html`<${Problem}>${one.problem}</${Problem}>`}
    <${Facts} pairs=${[
      ...one.networks.map((name) => [name, html`<span class="tag">${state.networks[name].backend}</span> MTU ${state.networks[name].mtu}
        ${ways.map(([from, to]) => html`<div key=${from.name}>${from.name} → ${to.name}: <${Measured} path=${told(from, to, name)} problem=${one.problem} /></div>`)}`]),
      ...pair.map((host) => [t("Underlay of {host}", { host: host.name }), host.underlay && html`<code>${host.underlay.ifname} ${host.underlay.addresses.join(" ")}</code>`]),
    ]} />
    <${Repairs} state=${state} fits=${(heal) => heal.key.split(" ").some((word) => places.includes(word))} />
    ${ways.map(([from, to]) => html`<${Commands} key=${from.name} title=${t("Commands that make it on {host}", { host: from.name })} host=${from.name} word=${`to reach host ${to.name}`} />`)}`;
}

function Measured({ path, problem }) {
  if (!path) return html`<small>${t("not measured yet")}</small>`;
  return html`<b>${roundTrip(path, problem)}</b> ${t("{n} % lost", { n: Math.round(100 * path.loss) })}`;
}

// A BGP session of the asked host: with a router, or with a host of the mesh.
function Session({ peer, changes, close }) {
  const found = useAnswer(`/api/bgp/${encodeURIComponent(peer)}`, {}, true, changes, CALM);
  return html`<${Head} title=${t("Session with {peer}", { peer })} close=${close}><${Again} found=${found} /></${Head}>
    <${Answer} found=${found}>${(told) => html`
      <div aria-live="polite" class=${`verdict ${told.state === "established" ? "ok" : "bad"}`}><${Badge} level=${told.state === "established" ? "ok" : "bad"}>${told.state}</${Badge}>
        <span>${told.why || t("It is up.")}</span></div>
      ${told.fix && html`<p class="fix">${told.fix}</p>`}
      <${Facts} pairs=${[
        [t("Address"), html`<code>${told.address}</code>`], ["AS", `${told.local_as} → ${told.remote_as}`],
        [t("From address"), told.source && html`<code>${told.source}</code>`], [t("Since"), told.since && html`<${Ago} at=${told.since} />`],
        [t("Prefixes"), t("{sent} sent, {accepted} of {received} accepted", told)],
      ]} />
      <details class="commands"><summary>${t("What was found on the path")}</summary><pre tabindex="0">${JSON.stringify(told.seen, null, 2)}</pre></details>`}</${Answer}>`;
}

// Each kind of repair once, by the last one: a flushed table is two dozen.
function Repairs({ state, fits }) {
  const kinds = Map.groupBy(Object.values(state.repairs).filter(fits).reverse(), (one) => `${one.kind} ${one.what}`);
  if (!kinds.size) return null;
  return html`<h3>${t("Last repairs")}</h3><ul class="plain">${[...kinds].map(([kind, [one, ...others]]) => html`
    <li key=${kind}><b>${one.kind}</b> <code>${one.key}</code> ${others.length > 0 && t("{n} more", { n: others.length })} ${t(one.what)} <small><${Ago} at=${one.at} /></small></li>`)}</ul>`;
}

// The commands that would make the object, as `linkspan plan` prints them; asked for when they are opened.
function Commands({ host, word, network = "", title = t("Commands that make it") }) {
  const [open, setOpen] = useState(false);
  const found = useAnswer("/api/plan", { host, word, network }, open);
  return html`<details class="commands" onToggle=${(event) => setOpen(event.target.open)}>
    <summary>${title}</summary>
    ${open && html`<${Answer} found=${found}>${(lines) => lines.length
      ? html`<ol class="plan">${lines.map((one, index) => html`<li key=${index}>
          <small class=${one.present ? "" : "absent"}># ${one.why}${one.present ? "" : ` (${t("missing in the kernel")})`}</small><code>${one.command}</code></li>`)}</ol>`
      : html`<${Empty}>${t("No command names it.")}</${Empty}>`}</${Answer}>`}
  </details>`;
}
