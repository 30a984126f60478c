// What the buttons of an answer do: votes, reports, reasons, the choice between two.

import * as chat from "./chat.js";
import { before } from "./asking.js";
import { elementOf, at, draw, keep, say, toast } from "./screen.js";
import * as server from "./server.js";
import { settings } from "./settings.js";
import { problemText, word } from "./words.js";

/** Do what the server may refuse; what follows is drawn and kept either way. */
async function tried(exchange, attempt, refused) {
  try {
    await attempt();
  } catch (error) {
    if (!(error instanceof server.Problem)) throw error;
    refused(error);
  }
  draw(exchange);
  keep();
}

/** A refusal that is about an exchange: 404 says that it is not kept. */
function aboutKept(problem) {
  return problem.status === 404 ? { ...problem.plain(), key: "not_kept" } : problem.plain();
}

function tellRefusal(problem) {
  toast(word("feedback_failed", { problem: problemText(aboutKept(problem)) }));
}

/** Send vote and report of a choice; `told` names the words for it. `place` is {exchange, answer, choice}. */
function feedback({ exchange, answer, choice }, changes, told) {
  const body = { id: answer.id, vote: choice.vote, flag: null, choice: choice.index, ...changes };
  return tried(exchange, async () => {
    await server.post("v1/feedback", body);
    Object.assign(choice, changes);
    if (told) toast(word(told));
  }, tellRefusal);
}

export function thumb(place, vote) {
  return feedback(place, { vote: place.choice.vote === vote ? null : vote });
}

/** Open or close the line in which a report is written. */
export function openFlag({ exchange, answer, choice }, open) {
  choice.flagging = open;
  draw(exchange);
  const side = exchange.answers.indexOf(answer), key = `${open ? "flag-text" : "flag"}-${choice.index}`;
  const element = elementOf(exchange).querySelector(`.answer[data-at="${side}"] [data-key="${key}"]`);
  (element || at("question")).focus();
}

export function flag(place, text) {
  if (text === "") return null;
  Object.assign(place.choice, { flagging: false, draft: null });
  return feedback(place, { flag: text }, "flagged");
}

export function copy(text) {
  return navigator.clipboard.writeText(text)
    .then(() => toast(word("copied")), () => toast(word("copy_failed")));
}

/** Have the server delete an exchange, whose text is not sent to it again. */
export function forget(exchange) {
  return tried(exchange, async () => {
    for (const id of chat.keptIds(exchange)) {
      await server.remove(`v1/chats/${encodeURIComponent(id)}`);
      exchange.earlier = exchange.earlier.filter(each => each !== id);
      for (const answer of exchange.answers) if (answer.id === id) answer.stored = false;
    }
    exchange.forgotten = true;
    toast(word("forgotten"));
  }, tellRefusal);
}

/** Ask the moderation about an exchange, or hide what it said. */
export function why({ exchange, choice }) {
  const shown = choice.why !== null;
  choice.why = shown ? null : { state: "asked" };
  draw(exchange);
  if (shown) return keep();
  const messages = [
    ...chat.messagesOf(before(exchange), settings.system.trim()),
    { role: "user", content: exchange.question },
    { role: "assistant", content: choice.text },
  ];
  return tried(exchange, async () => {
    const told = await server.post("v1/moderations", { input: { messages } });
    const { categories = {}, category_scores: scores = {} } = (told.results || [])[0] || {};
    choice.why = { state: "told", categories, scores };
    say(word("why_title"));
  }, problem => { choice.why = { state: "failed", problem: problem.plain() }; });
}

/** Say which of two answers is better (left, right, tie, or skip), and see the names. */
export function choose(exchange, vote) {
  const [left, right] = exchange.answers;
  exchange.vote = vote;
  if (vote !== "skip" && !(left.stored && right.stored)) exchange.sent = { key: "vote_not_kept" };
  draw(exchange);
  at("question").focus();
  say(`${word("left")}: ${left.model}, ${word("right")}: ${right.model}`);
  keep();
  if (vote === "skip" || exchange.sent !== null) return null;
  const [chosen, rejected] = vote === "right" ? [right.id, left.id] : [left.id, right.id];
  return tried(exchange, async () => {
    await server.post("v1/preferences", { chosen, rejected, tie: vote === "tie" });
    exchange.sent = { key: "vote_kept" };
  }, problem => { exchange.sent = { problem: aboutKept(problem) }; });
}
