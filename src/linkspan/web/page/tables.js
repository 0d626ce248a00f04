// The tables of containers, hosts and networks, with search and filters.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { CALM, useAnswer } from "/live.js";
import { bare, byName, containersOf, health, hostsOf, label, searched } from "/model.js";
import { Answer, Badge, Empty, Heading, Table, html, kept } from "/parts.js";
import { language, t } from "/words.js";

function Search({ route, go, label: name }) {
  return html`<input type="search" class="search" aria-label=${name} placeholder=${name} value=${route.q} maxlength="200"
    onInput=${(event) => go({ q: event.target.value }, { step: false })} />`;
}

function Filter({ name, title, items, route, go }) {
  return html`<${Choice} title=${title} items=${items} chosen=${route[name]} choose=${useLatest((value) => go({ [name]: value }))} />`;
}

// Returns a function that stays the same, and calls the last one that it was given.
function useLatest(work) {
  const now = useRef(work);
  now.current = work;
  return useMemo(() => (value) => now.current(value), []);
}

const Choice = kept(({ title, items, chosen, choose }) => html`
  <select aria-label=${title} value=${chosen} onChange=${(event) => choose(event.target.value)}>
    <option value="">${title}</option>
    ${items.map(({ name }) => html`<option key=${name} value=${name} selected=${chosen === name}>${name}</option>`)}
  </select>`);

export function Containers({ state, route, go, pick, marks, colour }) {
  const found = searched(route.q);
  const fits = (one) => (!route.host || one.host === route.host) && (!route.network || one.network === route.network) && found(one);
  const question = `${route.host} ${route.network} ${route.q}`;
  return html`
    <${Heading} title=${t("Containers")}>
      <${Search} route=${route} go=${go} label=${t("Name, address, label")} />
      <${Filter} name="host" title=${t("All hosts")} items=${hostsOf(state)} route=${route} go=${go} />
      <${Filter} name="network" title=${t("All networks")} items=${byName(state.networks)} route=${route} go=${go} />
    </${Heading}>
    ${state.about.complete
      ? html`<${Rows} found=${containersOf(state.containers).filter(fits)} ...${{ question, state, pick, marks, colour }} />`
      : html`<${Parts} ...${{ question, state, route, pick, marks, colour }} />`}`;
}

const AT_ONCE = 40; // rows, more than a screen has: more are drawn when the reader comes to their end

function Rows({ found, question, state, pick, marks, colour }) {
  const [more, setMore] = useState({ question, rows: AT_ONCE });
  const shown = more.question === question ? more.rows : AT_ONCE;
  const columns = useMemo(() => [
    { name: "name", title: t("Container"), of: (one) => html`<span class="dot" style=${{ background: colour(one.network) }}></span><span class="clip" title=${label(one)}>${label(one)}</span>` },
    { name: "address", title: t("Address"), of: (one) => html`<code>${one.addresses.map(bare).join(" ")}</code>` },
    { name: "host", title: t("Host"), of: (one) => one.host },
    { name: "network", title: t("Network"), of: (one) => one.network },
  ], [colour, language()]);
  if (!found.length) return html`<${Empty}>${state.about.total ? t("Nothing matches.") : t("No container is attached yet.")}</${Empty}>`;
  return html`<div class="fixed">
    <${Table} label=${t("Containers")} columns=${columns} rows=${found.slice(0, shown)} keyOf=${(one) => one.key}
      open=${(one) => pick(`c:${one.key}`)} selected=${marks} />
    ${found.length > shown && html`<${More} left=${found.length - shown} grow=${() => setMore({ question, rows: shown + 2 * AT_ONCE })} />`}</div>`;
}

// A button that presses itself when it comes into view.
function More({ left, grow }) {
  const button = useRef(null);
  const now = useLatest(grow);
  useEffect(() => {
    const observer = new IntersectionObserver(([seen]) => seen.isIntersecting && now(), { rootMargin: "300px" });
    observer.observe(button.current);
    return () => observer.disconnect();
  }, [left]);
  return html`<button type="button" class="quiet more" ref=${button} onClick=${grow}>${t("{n} more", { n: left })}</button>`;
}

// A large cluster's containers, in parts that the server chooses.
function Parts({ question, state, route, pick, marks, colour }) {
  const [page, setPage] = useState(0);
  const [search, setSearch] = useState(route.q);
  useEffect(() => {
    const timer = setTimeout(() => setSearch(route.q), 200);
    return () => clearTimeout(timer);
  }, [route.q]);
  useEffect(() => setPage(0), [search, route.host, route.network]);
  const found = useAnswer("/api/containers", { search, host: route.host, network: route.network, page }, true, state.about.total, CALM);
  return html`<${Answer} found=${found}>${(part) => html`
    <${Rows} found=${containersOf(part.containers)} ...${{ question, state, pick, marks, colour }} />
    <nav class="pages" aria-label=${t("Parts of the list")}>
      <button type="button" class="quiet" disabled=${page === 0} onClick=${() => setPage(page - 1)}>${t("Before")}</button>
      <span>${t("{page} of {pages}, {n} containers", { page: page + 1, pages: Math.max(1, part.pages), n: part.total })}</span>
      <button type="button" class="quiet" disabled=${page + 1 >= part.pages} onClick=${() => setPage(page + 1)}>${t("After")}</button>
    </nav>`}</${Answer}>`;
}

export function Hosts({ state, route, go, pick, marks }) {
  const q = route.q.toLowerCase();
  const found = hostsOf(state).filter((one) => `${one.name}\n${one.underlay?.addresses.join("\n") ?? ""}`.toLowerCase().includes(q));
  const columns = useMemo(() => [
    { name: "name", title: t("Host"), of: (one) => html`<span class="clip" title=${one.name}>${one.name}</span>${one.name === state.about.here && html` <small>${t("asked")}</small>`}` },
    { name: "state", title: t("State"), of: (one) => {
      const found = health(state, one);
      return html`<${Badge} level=${found.level} title=${found.why}>${t(found.word)}</${Badge}>`;
    } },
    { name: "address", title: t("Underlay"), of: (one) => html`<code>${one.underlay?.addresses.map(bare).join(" ") ?? "–"}</code>` },
    { name: "count", title: t("Containers"), of: (one) => one.containers },
    // Of hosts with one version it says nothing, and there is little room.
    ...(hostsOf(state).some((one) => one.version !== state.about.version) ? [{ name: "version", title: t("Version"), of: (one) => one.version }] : []),
  ], [state, language()]);
  return html`
    <${Heading} title=${t("Hosts")}><${Search} route=${route} go=${go} label=${t("Name, address")} /></${Heading}>
    ${found.length
      ? html`<${Table} label=${t("Hosts")} columns=${columns} rows=${found} keyOf=${(one) => one.name} selected=${marks} open=${(one) => pick(`h:${one.name}`)} />`
      : html`<${Empty}>${t("Nothing matches.")}</${Empty}>`}`;
}

export function Networks({ state, route, go, pick, marks, colour }) {
  const q = route.q.toLowerCase();
  const found = byName(state.networks).filter((one) => [one.name, one.backend, ...one.pools].join("\n").toLowerCase().includes(q));
  const columns = useMemo(() => [
    { name: "name", title: t("Network"), of: (one) => html`<span class="dot" style=${{ background: colour(one.name) }}></span><span class="clip" title=${one.name}>${one.name}</span>` },
    { name: "backend", title: t("Backend"), of: (one) => html`${one.backend}${one.migration && html` <b aria-label=${t("migrates to")}>→</b> ${one.migration.backend}`}` },
    { name: "address", title: t("Pools"), of: (one) => html`<code>${one.pools.join(" ")}</code>` },
    { name: "mtu", title: "MTU", of: (one) => one.mtu },
    { name: "count", title: t("Containers"), of: (one) => one.containers },
  ], [colour, language()]);
  return html`
    <${Heading} title=${t("Networks")}><${Search} route=${route} go=${go} label=${t("Name, backend, pool")} /></${Heading}>
    ${found.length
      ? html`<${Table} label=${t("Networks")} columns=${columns} rows=${found} keyOf=${(one) => one.name} selected=${marks} open=${(one) => pick(`n:${one.name}`)} />`
      : html`<${Empty}>${Object.keys(state.networks).length ? t("Nothing matches.") : t("No network yet: linkspan network create")}</${Empty}>`}`;
}

