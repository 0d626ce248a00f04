// The live state: one stream of server-sent events, and the state that it makes.
import { carrying } from "/session.js";

const AGAIN = 2000; // milliseconds until the next try after the stream ended

export class Stream {
  // tell(message) gets {kind: "state", state, events}, {kind: "change", change, events}, {kind: "lost"}: the server does
  // not answer, or {kind: "out"}: the session is over. Nothing is asked before `use`.
  constructor(tell) {
    this.tell = tell;
    this.state = null;
    this.events = [];
    this.status = "out";
    this.token = null;
  }

  // Follows the server with the token of a session, unless it does already.
  use(token) {
    if (token === this.token && this.status !== "out") return;
    this.token = token;
    this.status = "";
    this.follow(token);
  }

  // Follows the server until the session is over, or another one began.
  async follow(token) {
    while (token === this.token) {
      const answer = await fetch("/api/stream", { headers: carrying(token) }).catch(() => null);
      if (answer?.status === 401) {
        if (token === this.token) this.say("out");
        return;
      }
      if (answer?.ok) await this.read(answer.body, token).catch(() => {});
      if (token !== this.token) return;
      this.say("lost");
      await new Promise((done) => setTimeout(done, AGAIN));
    }
  }

  async read(body, token) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let kind = "";
    let begun = []; // parts of a line whose end has not come: a large state comes in many
    for (;;) {
      const { done, value } = await reader.read();
      if (token !== this.token) await reader.cancel();
      if (done || token !== this.token) return;
      const [first, ...rest] = value.split("\n");
      begun.push(first);
      for (const next of rest) {
        const line = begun.join("");
        begun = [next];
        if (line.startsWith("event: ")) kind = line.slice(7);
        else if (line.startsWith("data: ")) this.take(kind, JSON.parse(line.slice(6)));
      }
    }
  }

  take(kind, told) {
    this.status = "";
    if (kind === "state") {
      this.state = told.state;
      this.events = told.events;
    } else {
      this.state = changed(this.state, told.change);
      this.events = together(this.events, told.events);
    }
    this.tell({ kind, ...told });
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
