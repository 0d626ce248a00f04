// Small parts that several views use.
import { h } from "preact";
import { useEffect, useState } from "preact/hooks";
import htm from "htm";
import { SIGNS } from "/model.js";
import { t } from "/words.js";

export const html = htm.bind(h);

// A word with a sign: colour alone says nothing to everybody.
export function Badge({ level, children, title }) {
  return html`<span class=${`badge ${level}`} title=${title}><i aria-hidden="true">${SIGNS[level]}</i>${children}</span>`;
}

export function Problem({ children }) {
  return html`<p class="problem" role="alert">${children}</p>`;
}

export function Empty({ children }) {
  return html`<p class="empty">${children}</p>`;
}

// A view of an answer: a sign that it is awaited, the error, or the children with the answer.
export function Answer({ found, children }) {
  return html`
    ${found.error && html`<${Problem}>${found.error}</${Problem}>`}
    ${found.answer === null && !found.error && html`<p class="busy" role="status">${t("Asking the agent …")}</p>`}
    ${found.answer !== null && children(found.answer)}
  `;
}

// A heading with what may be done beside it.
export function Heading({ title, about, children }) {
  return html`<div class="heading"><div><h1>${title}</h1>${about && html`<p>${about}</p>`}</div>
    <div class="actions">${children}</div></div>`;
}

export function Again({ found }) {
  return html`<button type="button" class="quiet" disabled=${found.busy} onClick=${found.again}>${t("Ask again")}</button>`;
}

// A table: columns are {name, title, of(row), wide}, and a row is opened by its button, with a key or a click.
export function Table({ columns, rows, keyOf, open, selected, label }) {
  return html`<table aria-label=${label}>
    <thead><tr>${columns.map((one) => html`<th key=${one.name} scope="col" class=${one.name}>${one.title}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => {
      const key = keyOf(row);
      const marked = selected?.[key] ?? "";
      return html`<tr key=${key} class=${`${open ? "opens" : ""} ${marked}`} onClick=${open && (() => open(row))}>
        ${columns.map((one, index) => html`<td key=${one.name} class=${one.name} data-title=${one.title}>${
          index === 0 && open
            ? html`<button type="button" class="row" aria-pressed=${Boolean(marked)}
                onClick=${(event) => { event.stopPropagation(); open(row); }}>${one.of(row)}</button>`
            : one.of(row)
        }</td>`)}</tr>`;
    })}</tbody></table>`;
}

export function Facts({ pairs }) {
  return html`<dl>${pairs
    .filter(([, value]) => value !== "" && value != null && value?.length !== 0)
    .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

// How long ago a moment was, in seconds since the epoch.
export function Ago({ at }) {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 5000);
    return () => clearInterval(timer);
  }, []);
  const seconds = Math.max(0, now / 1000 - at);
  const [unit, size] = [["d", 86400], ["h", 3600], ["min", 60]].find(([, each]) => seconds >= 2 * each) ?? ["s", 1];
  const time = new Date(at * 1000);
  return html`<time datetime=${time.toISOString()} title=${time.toLocaleString()}>${t(`{n} ${unit} ago`, { n: Math.floor(seconds / size) })}</time>`;
}

// A bar that says how full something is.
export function Fill({ used, size }) {
  const share = Math.min(100, (100 * used) / size);
  const level = share >= 90 ? "bad" : share >= 75 ? "warn" : "ok";
  return html`<span class="fill"><span class=${`gauge ${level}`} aria-hidden="true"><span style=${{ width: `${share}%` }}></span></span>
    ${t("{used} of {size}", { used, size: size > 1e9 ? `2^${Math.log2(size).toFixed()}` : size })}</span>`;
}
