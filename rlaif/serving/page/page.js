// The page begins here: what the server has, the settings, the token, the keys.

import * as acts from "./acts.js";
import { again, newChat, send, stop } from "./asking.js";
import * as screen from "./screen.js";
import * as server from "./server.js";
import { hasToken, set, settings, useToken } from "./settings.js";
import { countDown } from "./view.js";
import { known, language, loadWords, setLanguage, word } from "./words.js";

const { at, state } = screen;
let afterToken = null;

// Settings --------------------------------------------------------------------------------------------------------

/** Two policies that are compared are different ones. */
function choose(id, name) {
  const other = id === "first" ? "second" : "first";
  set(settings[other] === name ? { [other]: settings[id], [id]: name } : { [id]: name });
  screen.drawModels();
  screen.drawWelcome();
}

function useTheme() {
  if (settings.theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

function openSettings() {
  at("system").value = settings.system;
  at("temperature").value = settings.temperature;
  at("max-tokens").value = settings.maxTokens || "";
  at("theme").value = settings.theme;
  screen.drawControls();
  at("settings").showModal();
}

function listenToSettings() {
  at("settings-open").addEventListener("click", openSettings);
  at("settings-form").addEventListener("submit", event => { event.preventDefault(); at("settings").close(); });
  at("system").addEventListener("input", () => set({ system: at("system").value }));
  at("temperature").addEventListener("input", () => {
    set({ temperature: Number(at("temperature").value) });
    screen.drawTemperature();
  });
  at("max-tokens").addEventListener("input", () => {
    set({ maxTokens: at("max-tokens").validity.valid ? Number(at("max-tokens").value) || null : null });
  });
  at("theme").addEventListener("change", () => { set({ theme: at("theme").value }); useTheme(); });
}

function listenToHeader() {
  at("language").addEventListener("click", () => {
    set({ language: language() === "en" ? "zh" : "en" });
    setLanguage(settings.language);
    screen.drawWords();
  });
  for (const id of ["first", "second"]) at(id).addEventListener("change", () => choose(id, at(id).value));
  at("compare").addEventListener("change", () => {
    set({ compare: at("compare").checked });
    screen.drawControls();
    screen.drawWelcome();
  });
  at("new").addEventListener("click", newChat);
}

// The token -------------------------------------------------------------------------------------------------------

/** Ask the user for the token; `then` goes on with it. */
function askToken(then) {
  afterToken = then;
  at("token-problem").hidden = !hasToken();
  at("token-problem").textContent = word("token_wrong");
  at("token-text").value = "";
  if (!at("token").open) at("token").showModal();
}

function listenToToken() {
  at("token-form").addEventListener("submit", event => {
    event.preventDefault();
    const text = at("token-text").value.trim();
    if (!/^[!-~]+$/.test(text)) {
      at("token-problem").textContent = word("token_bad");
      at("token-problem").hidden = false;
      return;
    }
    useToken(text);
    at("token").close();
    afterToken();
  });
  at("token").addEventListener("cancel", () => {
    if (state.models.length === 0) screen.drawProblem(new server.Problem("needs_token"), begin);
  });
  at("token-forget").addEventListener("click", () => {
    useToken(null);
    at("settings").close();
    begin();
  });
}

// The beginning ---------------------------------------------------------------------------------------------------

/** Learn what the server has. */
async function learn() {
  const [told, listed] = await Promise.all([server.get("v1/info"), server.get("v1/models")]);
  const models = (listed.data || []).map(model => model.id);
  if (models.length === 0) throw new server.Problem("no_models");
  const first = models.includes(settings.first) ? settings.first : models.at(-1);
  const others = models.filter(name => name !== first);
  const second = others.includes(settings.second) ? settings.second : others[0] || null;
  Object.assign(state, { models, info: { ...state.info, ...told } });
  set({ first, second, compare: settings.compare && others.length > 0 });
}

/** Show the conversation, or why nothing can be asked. */
async function begin() {
  state.models = [];
  screen.drawProblem(null);
  try {
    await learn();
  } catch (error) {
    if (!(error instanceof server.Problem)) throw error;
    screen.drawControls();
    if (error.key === "needs_token") askToken(begin);
    else screen.drawProblem(error, begin);
    return;
  }
  screen.drawModels();
  screen.drawAll();
  screen.showConsent(state.exchanges.length === 0 && !screen.agreed());
  at("question").focus();
}

function listenToQuestion() {
  at("question").addEventListener("input", screen.drawQuestion);
  at("question").addEventListener("keydown", event => {
    // 229: the key belongs to an input method, which some browsers say only so.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send(askToken);
  });
  at("ask").addEventListener("submit", event => { event.preventDefault(); send(askToken); });
  at("stop").addEventListener("click", stop);
  at("store").addEventListener("change", () => {
    set({ consent: at("store").checked ? state.info.collect.consent : null });
    screen.drawConsent();
  });
  at("consent-more").addEventListener("click", () => screen.showConsent(!screen.consentShown()));
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  });
}

useTheme();
await loadWords();
setLanguage(settings.language || known(navigator.languages));
screen.useActs({ ...acts, again: exchange => again(exchange, askToken) });
listenToSettings();
listenToHeader();
listenToToken();
listenToQuestion();
for (const event of ["beforeunload", "pagehide"]) addEventListener(event, screen.leave);
setInterval(() => countDown(document), 250);
screen.drawWords();
await begin();
