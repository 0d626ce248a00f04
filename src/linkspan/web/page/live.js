// The live state for this tab, and questions to the server.
import { useEffect, useRef, useState } from "preact/hooks";
import { KEPT_AS, carrying, kept } from "/session.js";
import { Stream, changed, together } from "/stream.js";
import { language, t } from "/words.js";

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
  return answered(await fetch(`${path}?${new URLSearchParams(words)}`, { headers: headers() }));
}

// Asks for something that sends packets.
export async function send(path, body = {}) {
  return answered(await fetch(path, { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

// The agent's sentences come in the page's language, as far as the server knows them.
function headers() {
  return { ...carrying(kept()), "Accept-Language": language() };
}

async function answered(answer) {
  if (answer.status === 401) throw new Error(t("The session is over. Start `linkspan web` again, or press Enter where it runs: it prints another link."));
  const found = await answer.json();
  if (answer.ok) return found;
  const { message, hint } = found.error;
  throw new Error(hint ? `${message}; ${hint}` : message);
}

export const CALM = 10_000; // milliseconds until a question is asked again whose answer changes by itself
const RETRY = 5000; // and one that had no answer: the agent may be back

// Returns {answer, error, busy, again} of a question that is asked when the view opens, when `again` is called, when
// `version` or the language is another one, `every` so many milliseconds (0: never), and after an error until there is
// an answer.
export function useAnswer(path, words = {}, wanted = true, version = "", every = 0) {
  const [found, setFound] = useState({ answer: null, error: "", busy: true });
  const [round, setRound] = useState(0);
  const quiet = useRef(false); // nobody asked: a button that is disabled meanwhile would lose the focus
  const waits = useRef(false); // for an answer: an answer that takes longer than the pause would never count
  const key = JSON.stringify([path, words, wanted, version, language(), round]);
  useEffect(() => {
    if (!wanted) return undefined;
    let current = true;
    if (!quiet.current) setFound((now) => ({ ...now, busy: true }));
    quiet.current = false;
    waits.current = true;
    const settle = (next) => {
      if (!current) return;
      waits.current = false;
      setFound(next);
    };
    ask(path, words).then(
      (answer) => settle({ answer, error: "", busy: false }),
      (error) => settle((now) => ({ ...now, error: error.message, busy: false })),
    );
    return () => {
      current = false;
    };
  }, [key]);
  const pause = found.error ? RETRY : every;
  useEffect(() => {
    if (!wanted || !pause) return undefined;
    const timer = setInterval(() => {
      if (document.visibilityState !== "visible" || waits.current) return;
      quiet.current = true;
      setRound((now) => now + 1);
    }, pause);
    return () => clearInterval(timer);
  }, [wanted, pause]);
  return { ...found, again: () => setRound((now) => now + 1) };
}
