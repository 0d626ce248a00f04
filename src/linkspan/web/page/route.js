// What the address bar keeps: the view, its search and filters, what is selected, and the trace.
import { useEffect, useState } from "preact/hooks";

export const VIEWS = ["containers", "hosts", "networks", "addresses", "events", "doctor", "peers", "bgp", "drift", "migrations"];
export const MAPPED = ["containers", "hosts", "networks", "bgp"]; // views with the graph beside them
const WORDS = ["q", "host", "network", "sel", "a", "b", "port"];

// Returns what the address bar has now.
export function here() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const words = new URLSearchParams(query);
  const route = { view: VIEWS.includes(path) ? path : "containers" };
  for (const word of WORDS) route[word] = words.get(word) ?? "";
  return route;
}

export function address(route) {
  const words = new URLSearchParams(WORDS.filter((word) => route[word]).map((word) => [word, route[word]]));
  return `#/${route.view}${words.size ? `?${words}` : ""}`;
}

// Returns [route, go]: go(changes) writes the address; typing in the search makes no steps for the back button.
export function useRoute() {
  const [route, setRoute] = useState(here);
  useEffect(() => {
    const follow = () => setRoute(here());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const go = (changes, { step = true } = {}) => {
    const next = { ...here(), ...changes };
    history[step ? "pushState" : "replaceState"](null, "", address(next));
    setRoute(next);
  };
  return [route, go];
}
