"""Questions of the page's views (`live.js`), in Node: the browser's clock and server are those of the test."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from linkspan.web.files import FOLDER

STUBS = {
    "package.json": '{"type": "module"}',
    "session.js": 'export const KEPT_AS = "", carrying = () => ({}), kept = () => "";',
    "stream.js": "export const Stream = null, changed = null, together = null;",
    "words.js": 'export const t = (word) => word, language = () => "en";',
    "hooks.js": """
const slots = [], effects = [];
let at = 0, body, waiting = false;
export const useRef = (first) => slots[at++] ??= { current: first };
export function useState(first) {
  const slot = slots[at++] ??= { value: first };
  return [slot.value, (next) => {
    slot.value = typeof next === "function" ? next(slot.value) : next;
    if (!waiting) queueMicrotask(() => rendered(body));
    waiting = true;
  }];
}
export function useEffect(act, on) {
  const place = at++;
  const old = slots[place];
  if (old && on.every((one, index) => one === old.on[index])) return;
  effects.push(() => { old?.end?.(); slots[place] = { on, end: act() }; });
}
export function rendered(component) {
  [body, at, waiting] = [component, 0, false];
  component();
  effects.splice(0).forEach((act) => act());
}
""",
}
LATE = """
import { rendered } from "./hooks.js";
import { useAnswer } from "./live.js";
const open = [];
let asked = 0, tick = null, found;
globalThis.document = { visibilityState: "visible" };
globalThis.setInterval = (act) => { tick = act; };
globalThis.clearInterval = () => { tick = null; };
globalThis.fetch = () => { asked += 1; return new Promise((resolve) => open.push(resolve)); };
const calm = () => new Promise(setImmediate);
async function answered(status, answer) {
  open.shift()({ status, ok: status === 200, json: async () => answer });
  await calm();
}
rendered(() => { found = useAnswer("/api/doctor"); });
await answered(503, { error: { message: "no store", hint: "" } });
for (let time = 0; time < 3; time += 1) { tick(); await calm(); }
await answered(200, "fine");
console.log(JSON.stringify({ answer: found.answer, error: found.error, asked, ticks: tick !== null }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node: apt-get install nodejs")
def test_an_answer_that_comes_after_the_pause_counts(tmp_path: Path) -> None:
    """After an error a view asks again, and waits for the answer, however long it takes; then it asks no more."""
    live = (FOLDER / "live.js").read_text(encoding="utf-8")
    files = STUBS | {"live.js": live.replace('"preact/hooks"', '"./hooks.js"').replace('from "/', 'from "./')}
    for name, text in (files | {"late.js": LATE}).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(["node", tmp_path / "late.js"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"answer": "fine", "error": "", "asked": 2, "ticks": False}
