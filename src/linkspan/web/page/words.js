// The page's words: English in the code, and translations here. tests/unit/web/test_page_words.py says what is missing.
import { useEffect, useState } from "preact/hooks";
import { ZH } from "/words-zh.js";

export const LANGUAGES = { en: "English", zh: "中文" };
const KEPT_AS = "linkspan-language";

const changed = new EventTarget();
let current = first();

function first() {
  const kept = localStorage.getItem(KEPT_AS);
  if (kept in LANGUAGES) return kept;
  return navigator.language.startsWith("zh") ? "zh" : "en";
}

export function language() {
  return current;
}

export function setLanguage(code) {
  current = code;
  localStorage.setItem(KEPT_AS, code);
  document.documentElement.lang = code === "zh" ? "zh-Hans" : "en";
  changed.dispatchEvent(new Event("language"));
}

// Draws the page again when the language changes.
export function useWords() {
  const [, setRound] = useState(0);
  useEffect(() => {
    document.documentElement.lang = current === "zh" ? "zh-Hans" : "en";
    const again = () => setRound((now) => now + 1);
    changed.addEventListener("language", again);
    return () => changed.removeEventListener("language", again);
  }, []);
}

// Returns the text in the page's language, with the values in place of {names}.
export function t(text, values = {}) {
  const words = current === "zh" && Object.hasOwn(ZH, text) ? ZH[text] : text;
  return words.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}
