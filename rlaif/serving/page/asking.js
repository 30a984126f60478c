// Asking: from a question to the answer's end.

import * as chat from "./chat.js";
import * as screen from "./screen.js";
import { settings } from "./settings.js";
import { spoken } from "./view.js";
import { word } from "./words.js";

const { at, state } = screen;

/** What is asked for besides the model. */
function request(before, question) {
  return {
    messages: [...chat.messagesOf(before, settings.system.trim()), { role: "user", content: question }],
    temperature: settings.temperature,
    stream_options: { include_usage: true },
    ...(settings.maxTokens ? { max_tokens: settings.maxTokens } : {}),
    ...(screen.agreed() ? { store: true } : {}),
  };
}

/** The policies that answer; two are on sides drawn at random. */
function chosenModels() {
  if (!settings.compare) return [settings.first];
  const pair = [settings.first, settings.second];
  return crypto.getRandomValues(new Uint8Array(1))[0] % 2 ? pair.reverse() : pair;
}

/** The exchanges before one. */
export function before(exchange) {
  return state.exchanges.slice(0, state.exchanges.indexOf(exchange));
}

/** Stream the answers of an exchange. `needsToken` is called where the server asks for a token. */
async function answer(exchange, needsToken) {
  const body = request(before(exchange), exchange.question);
  let frame = 0;
  const changed = () => {
    frame ||= requestAnimationFrame(() => { frame = 0; screen.drawTexts(exchange); });
  };
  const stopper = state.stopper = new AbortController();
  screen.drawControls();
  screen.say(word("answering"));
  const ended = each => chat.run(each, body, stopper.signal, changed).finally(() => screen.draw(exchange));
  const problems = await Promise.all(exchange.answers.map(ended)).finally(() => { state.stopper = null; });
  cancelAnimationFrame(frame);
  screen.draw(exchange);
  screen.drawControls();
  screen.keep();
  screen.say(spoken(exchange));
  if (problems.some(problem => problem !== null && problem.key === "needs_token")) needsToken();
}

/** Ask what was typed. `askToken` is given what to do when there is a token. */
export function send(askToken) {
  const question = at("question").value.trim(), last = state.exchanges.at(-1);
  if (question === "" || state.stopper !== null || state.models.length === 0) return;
  if (last && chat.isOpen(last)) {
    screen.toast(word("vote_first"));
    screen.elementOf(last).querySelector(".vote button").focus();
    return;
  }
  const exchange = chat.newExchange(question, chosenModels());
  state.exchanges.push(exchange);
  at("question").value = "";
  at("welcome").hidden = true;
  screen.drawQuestion();
  if (last) screen.draw(last);
  screen.draw(exchange);
  screen.showConsent(false);
  screen.toEnd();
  screen.keep();
  answer(exchange, () => askToken(() => again(exchange, askToken)));
}

/** Ask for the answers of an exchange once more. */
export function again(exchange, askToken) {
  if (state.stopper !== null) return;
  chat.clear(exchange);
  at("question").focus();
  screen.draw(exchange);
  answer(exchange, () => askToken(() => again(exchange, askToken)));
}

/** Stop the answer under way, if there is one. */
export function stop() {
  if (state.stopper === null) return;
  state.stopper.abort();
  at("question").focus();
}

/** Put the conversation aside; it can be brought back for some seconds. */
export function newChat() {
  const old = state.exchanges;
  const show = exchanges => {
    stop();
    state.exchanges = exchanges;
    screen.keep();
    screen.drawAll();
    at("question").focus();
  };
  show([]);
  screen.toast(word("cleared"), () => show(old));
}
