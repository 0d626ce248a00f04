// Small parts that several views use.
import { Component, h } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";
import { SIGNS } from "/model.js";
import { language, t } from "/words.js";

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

// Returns a view that is drawn again only if one of its properties, or the language, is another one.
export function kept(View) {
  const drawn = (properties) => html`<${View} ...${properties} />`;
  return class extends Component {
    shouldComponentUpdate(next) {
      if (this.language !== language()) return true;
      const names = Object.keys(next);
      return names.length !== Object.keys(this.props).length || names.some((name) => next[name] !== this.props[name]);
    }

    render(properties) {
      this.language = language();
      return drawn(properties);
    }
  };
}

// A table: columns are {name, title, of(row)}, and a row is opened by its button, with a key or a click. Columns that
// stay the same objects let rows be as they are: a search is not slower because of the rows that it leaves.
export function Table({ columns, rows, keyOf, open, selected, label }) {
  const byKey = new Map(rows.map((row) => [String(keyOf(row)), row]));
  const now = useRef(null);
  now.current = (event) => {
    const row = event.target.closest("tr")?.dataset.key;
    if (byKey.has(row)) open(byKey.get(row));
  };
  return html`<table aria-label=${label}>
    <thead><tr>${columns.map((one) => html`<th key=${one.name} scope="col" class=${one.name}>${one.title}</th>`)}</tr></thead>
    <tbody onClick=${open && ((event) => now.current(event))}>${[...byKey].map(([key, row]) => html`
      <${Row} key=${key} name=${key} columns=${columns} row=${row} opens=${Boolean(open)} marked=${selected?.[key] ?? ""} />`)}</tbody></table>`;
}

const Row = kept(({ name, columns, row, opens, marked }) => html`
  <tr data-key=${name} class=${`${opens ? "opens" : ""} ${marked}`}>${columns.map((one, index) => html`
    <td key=${one.name} class=${one.name}>${index === 0 && opens ? html`<button type="button" class="row" aria-pressed=${Boolean(marked)}>${one.of(row)}</button>` : one.of(row)}</td>`)}</tr>`);

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
