// The texts of the page, in the language that was chosen.

const LANGUAGES = { en: "en", zh: "zh-Hans" };
let table = null;
let chosen = "en";

/** Read the table of texts. */
export async function loadWords() {
  table = await (await fetch(new URL("words.json", import.meta.url))).json();
}

/** The first of `wanted` (as of navigator.languages) that there is, or English. */
export function known(wanted) {
  return wanted.map(tag => tag.toLowerCase().split("-")[0]).find(tag => tag in LANGUAGES) || "en";
}

export function language() { return chosen; }

export function setLanguage(name) {
  chosen = name;
  document.documentElement.lang = LANGUAGES[name];
}

/** The text of a key; `{name}` in it stands for a value. */
export function word(key, values = {}) {
  return table[chosen][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** What went wrong, in words: see `Problem` in server.js. */
export function problemText(problem) {
  return word(problem.key, problem.values);
}

/** Put the texts into the elements that name them. */
export function fillWords(root) {
  const each = (kind, put) => {
    for (const element of root.querySelectorAll(`[data-${kind}]`)) put(element, word(element.dataset[kind]));
  };
  each("text", (element, text) => { element.textContent = text; });
  each("label", (element, text) => element.setAttribute("aria-label", text));
  each("title", (element, text) => { element.title = text; });
  each("hint", (element, text) => { element.placeholder = text; });
}
