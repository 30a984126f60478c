// What the user has set: kept in sessionStorage, so that a reload keeps it and the end of the tab forgets it.

import { setToken } from "./server.js";

const SETTINGS = "rlaif.settings", TOKEN = "rlaif.token";
const FIRST = {
  language: null, theme: "system", first: null, second: null, compare: false, system: "", temperature: 1,
  maxTokens: null,
  // The text that was agreed to; what another text asks for has not been agreed to.
  consent: null,
};

export const settings = { ...FIRST, ...JSON.parse(sessionStorage.getItem(SETTINGS) || "{}") };

export function set(changes) {
  Object.assign(settings, changes);
  sessionStorage.setItem(SETTINGS, JSON.stringify(settings));
}

export function hasToken() { return sessionStorage.getItem(TOKEN) !== null; }

/** Use a token from now on, or none. */
export function useToken(text) {
  if (text === null) sessionStorage.removeItem(TOKEN);
  else sessionStorage.setItem(TOKEN, text);
  setToken(text || "");
}

useToken(sessionStorage.getItem(TOKEN));
