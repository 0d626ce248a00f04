// The live state: one stream of server-sent events, and the state that it makes.

const AGAIN = 2000; // milliseconds until the next try after the server refused the stream

export class Stream {
  // tell(message) gets {kind: "state", state, events}, {kind: "change", change, events}, {kind: "lost"}: the server does
  // not answer, or {kind: "out"}: the session is over.
  constructor(tell) {
    this.tell = tell;
    this.state = null;
    this.events = [];
    this.status = "";
    this.open();
  }

  open() {
    const source = new EventSource("/api/stream");
    source.addEventListener("state", (event) => {
      const whole = JSON.parse(event.data);
      this.state = whole.state;
      this.events = whole.events;
      this.status = "";
      this.tell(this.whole());
    });
    source.addEventListener("change", (event) => {
      const { change, events } = JSON.parse(event.data);
      this.state = changed(this.state, change);
      this.events = together(this.events, events);
      this.tell({ kind: "change", change, events });
    });
    source.addEventListener("error", () => this.failed(source));
  }

  async failed(source) {
    this.say("lost");
    if (source.readyState !== EventSource.CLOSED) return; // the browser tries again
    const answer = await fetch("/api/state").catch(() => null);
    if (answer?.status === 401) this.say("out");
    else setTimeout(() => this.open(), AGAIN);
  }

  say(kind) {
    this.status = kind;
    this.tell({ kind });
  }

  // What a tab needs that comes later.
  whole() {
    if (this.state === null) return this.status ? { kind: this.status } : null;
    return { kind: "state", state: this.state, events: this.events };
  }
}

const KEPT = 1000; // events

export function together(events, more) {
  return [...events, ...more].slice(-KEPT);
}

// Returns the state after a change; sections and items that did not change stay the same objects.
export function changed(state, change) {
  const after = { ...state };
  for (const [section, { put, drop }] of Object.entries(change)) {
    const items = { ...state[section], ...put };
    for (const key of drop) delete items[key];
    after[section] = items;
  }
  return after;
}
