// The live state for this tab, and questions to the server.
import { useEffect, useState } from "preact/hooks";
import { KEPT_AS, carrying, kept } from "/session.js";
import { Stream, changed, together } from "/stream.js";

// Calls tell with each message of the stream, which the tabs of this browser share where the browser can.
function listen(tell) {
  if (!("SharedWorker" in self)) {
    listenAlone(tell);
    return;
  }
  const worker = new SharedWorker("/worker.js", { type: "module", name: "linkspan" });
  const { port } = worker;
  const hello = () => port.postMessage({ hello: kept() });
  port.onmessage = ({ data }) => tell(data);
  worker.addEventListener("error", () => listenAlone(tell), { once: true }); // it did not start
  hello();
  addEventListener("pagehide", () => port.postMessage({ bye: true }));
  addEventListener("pageshow", (event) => event.persisted && hello());
}

function listenAlone(tell) {
  const stream = new Stream(tell);
  stream.use(kept());
  addEventListener("storage", (event) => event.key === KEPT_AS && stream.use(kept())); // another tab has logged in
}

// Returns {state, events, link}: link is "", "lost" (the server does not answer) or "out" (the session is over).
export function useLive() {
  const [live, setLive] = useState({ state: null, events: [], link: "" });
  useEffect(() => {
    listen((message) =>
      setLive((now) => {
        if (message.kind === "state") return { state: message.state, events: message.events, link: "" };
        if (message.kind !== "change") return { ...now, link: message.kind };
        if (now.state === null) return now;
        const events = message.events.length ? together(now.events, message.events) : now.events;
        return { state: changed(now.state, message.change), events, link: "" };
      }),
    );
  }, []);
  return live;
}

// Returns the server's answer. Throws an Error whose message is for people.
export async function ask(path, words = {}) {
  return answered(await fetch(`${path}?${new URLSearchParams(words)}`, { headers: carrying(kept()) }));
}

// Asks for something that sends packets.
export async function send(path, body = {}) {
  const headers = { ...carrying(kept()), "Content-Type": "application/json" };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answered(answer) {
  if (answer.status === 401) throw new Error("the session is over");
  const found = await answer.json();
  if (answer.ok) return found;
  const { message, hint } = found.error;
  throw new Error(hint ? `${message}; ${hint}` : message);
}

// Returns {answer, error, busy, again} of a question that is asked when the view opens, when `again` is called, and when
// `version` is another one.
export function useAnswer(path, words = {}, wanted = true, version = "") {
  const [found, setFound] = useState({ answer: null, error: "", busy: true });
  const [round, setRound] = useState(0);
  const key = JSON.stringify([path, words, wanted, version, round]);
  useEffect(() => {
    if (!wanted) return undefined;
    let current = true;
    setFound((now) => ({ ...now, busy: true }));
    ask(path, words).then(
      (answer) => current && setFound({ answer, error: "", busy: false }),
      (error) => current && setFound((now) => ({ ...now, error: error.message, busy: false })),
    );
    return () => {
      current = false;
    };
  }, [key]);
  return { ...found, again: () => setRound((now) => now + 1) };
}
