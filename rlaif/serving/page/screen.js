// What is on the screen: the conversation, the controls, and a few words that come and go.

import * as chat from "./chat.js";
import { hasToken, settings } from "./settings.js";
import * as view from "./view.js";
import { fillWords, word } from "./words.js";

const EXAMPLES = ["example_1", "example_2", "example_3"];
const NEAR = 80;
const SHORT = 4000, LONG = 10000;

/** What the page works on: the conversation, what the server has, and what stops the answer under way. */
export const state = {
  exchanges: chat.kept(),
  info: { collect: null, moderation: null, directives: null },
  models: [],
  stopper: null,
};
let drawn = new Map();
let acts = {};
let fading = 0;
let leaving = 0;

export const at = id => document.getElementById(id);

/** Name what the buttons of an exchange do. */
export function useActs(given) { acts = given; }

/** The element of an exchange. */
export function elementOf(exchange) { return drawn.get(exchange); }

/** Whether the user has agreed to the text that the server shows now. */
export function agreed() {
  return state.info.collect !== null && settings.consent === state.info.collect.consent;
}

function follows() {
  const box = at("conversation");
  return box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
}

export function toEnd() { at("conversation").scrollTop = at("conversation").scrollHeight; }

/** Make an exchange anew; the focus stays where it was. */
export function draw(exchange) {
  if (!state.exchanges.includes(exchange)) return;
  const old = drawn.get(exchange), follow = follows();
  const focused = old && old.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const side = focused && document.activeElement.closest(".answer");
  const can = { why: state.info.moderation !== null, last: state.exchanges.at(-1) };
  const made = view.exchangeElement(exchange, can, acts);
  if (old) old.replaceWith(made);
  else at("exchanges").append(made);
  drawn.set(exchange, made);
  if (focused) {
    const within = side ? made.querySelector(`.answer[data-at="${side.dataset.at}"]`) : made;
    (within.querySelector(`[data-key="${focused}"]`) || at("question")).focus();
  }
  if (follow) toEnd();
}

/** Show the texts that have come, while an exchange streams. */
export function drawTexts(exchange) {
  if (!drawn.has(exchange)) return;
  const follow = follows();
  if (!view.refresh(drawn.get(exchange), exchange)) draw(exchange);
  if (follow) toEnd();
}

export function drawAll() {
  drawn = new Map();
  at("exchanges").replaceChildren();
  state.exchanges.forEach(draw);
  drawWelcome();
  drawConsent();
  drawControls();
  toEnd();
}

export function drawWelcome() {
  const example = key => view.make("li", {}, view.make("button", {
    type: "button", onclick: () => { at("question").value = word(key); drawQuestion(); at("question").focus(); },
  }, word(key)));
  at("welcome").hidden = state.exchanges.length > 0 || state.models.length === 0;
  at("welcome-more").textContent =
    settings.compare ? word("welcome_two") : word("welcome_one", { model: settings.first });
  at("examples").replaceChildren(...EXAMPLES.map(example));
}

export function drawControls() {
  const running = state.stopper !== null;
  at("send").hidden = running;
  at("stop").hidden = !running;
  at("send").disabled = at("question").value.trim() === "" || state.models.length === 0;
  at("new").disabled = state.exchanges.length === 0;
  at("comparing").hidden = state.models.length < 2;
  at("compare").checked = settings.compare;
  at("against").hidden = at("second").hidden = !settings.compare;
  for (const id of ["first", "second", "compare"]) at(id).disabled = running;
  at("token-forget").hidden = !hasToken();
}

/** The question grows with its lines. */
export function drawQuestion() {
  const box = at("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  drawControls();
}

export function drawModels() {
  for (const id of ["first", "second"]) {
    at(id).replaceChildren(...state.models.map(name => view.make("option", { value: name }, name)));
    at(id).value = settings[id];
  }
}

export function consentShown() { return at("consent-told").dataset.open === "yes"; }

/** Show what is kept, or hide it. */
export function showConsent(open) {
  at("consent-told").dataset.open = open ? "yes" : "no";
  drawConsent();
}

export function drawConsent() {
  const { collect } = state.info;
  at("consent").hidden = collect === null;
  if (collect === null) return;
  const days = collect.retain_days;
  at("store").checked = agreed();
  at("consent-text").textContent = collect.consent;
  at("consent-days").textContent = days === null ? word("retain_always") : word("retain", { days: Math.round(days * 100) / 100 });
  at("consent-told").hidden = !consentShown();
  at("consent-more").setAttribute("aria-expanded", String(consentShown()));
}

export function drawTemperature() { at("temperature-now").textContent = settings.temperature.toFixed(2); }

/** Everything, in the language that was chosen. */
export function drawWords() {
  fillWords(document);
  document.title = word("title");
  drawTemperature();
  drawAll();
}

/** Show why nothing can be asked, with a button that tries again; null when something can. */
export function drawProblem(problem, again) {
  at("problem").hidden = problem === null;
  at("problem").replaceChildren(...(problem === null ? [] : [view.problemBox(problem, again)]));
}

/** Tell a screen reader. */
export function say(text) { at("said").textContent = text; }

/** Show a few words for some seconds, with a button that takes back what was done. */
export function toast(text, undo) {
  const button = undo && view.make("button", {
    type: "button", class: "link", onclick: () => { at("toast").hidden = true; undo(); },
  }, word("undo"));
  at("toast").replaceChildren(text, " ", ...(button ? [button] : []));
  at("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { at("toast").hidden = true; }, undo ? LONG : SHORT);
}

/** Keep the conversation as it is when the page is left: what breaks on the way out is not kept. */
export function leave() {
  if (performance.now() < leaving) return;
  chat.keep(state.exchanges);
  leaving = performance.now() + SHORT;
}

/** Keep the conversation over a reload. */
export function keep() {
  if (performance.now() < leaving) return;
  if (!chat.keep(state.exchanges)) toast(word("memory_full"));
}
