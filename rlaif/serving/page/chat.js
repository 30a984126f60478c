// The conversation: exchanges of a question and one answer, or two of two policies; its copy in sessionStorage.
//
// An answer has choices (two for both sides of a matter), each with its text, and the state it is in: running,
// done, stopped or failed.

import { chunks, Problem } from "./server.js";

const KEPT_UNDER = "rlaif.chat";

export function newExchange(question, models) {
  return { question, vote: null, sent: null, forgotten: false, earlier: [], answers: models.map(newAnswer) };
}

export function newAnswer(model) {
  return {
    model, id: null, stored: false, state: "running", problem: null, directives: [], tokens: null,
    seconds: null, choices: [],
  };
}

/** The ids under which the server keeps an exchange, those of answers that were asked for again too. */
export function keptIds(exchange) {
  return [...exchange.earlier, ...exchange.answers.filter(each => each.stored).map(each => each.id)];
}

/** Forget the answers of an exchange, to ask for them again. */
export function clear(exchange) {
  const answers = exchange.answers.map(each => newAnswer(each.model));
  Object.assign(exchange, { vote: null, sent: null, forgotten: false, earlier: keptIds(exchange), answers });
}

function choiceOf(answer, index) {
  let found = answer.choices.find(choice => choice.index === index);
  if (!found) {
    found = { index, text: "", label: "", finish: null, moderation: null, vote: null, flag: null, why: null };
    answer.choices.push(found);
    answer.choices.sort((one, other) => one.index - other.index);
  }
  return found;
}

/** Take in one chunk of a stream. */
function take(answer, chunk) {
  answer.id = chunk.id || answer.id;
  if ("stored" in chunk) answer.stored = chunk.stored === true;
  if (chunk.directives) answer.directives = chunk.directives.applied || [];
  if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
  for (const told of chunk.choices || []) {
    const choice = choiceOf(answer, told.index);
    if (told.delta && typeof told.delta.content === "string") choice.text += told.delta.content;
    choice.label = told.label || choice.label;
    choice.finish = told.finish_reason || choice.finish;
    choice.moderation = told.moderation || choice.moderation;
  }
}

/** Stream an answer; `changed` is called for what comes. It ends in a state other than running. */
export async function run(answer, body, signal, changed) {
  const began = performance.now();
  try {
    for await (const chunk of chunks({ ...body, model: answer.model }, signal)) {
      take(answer, chunk);
      changed();
    }
    answer.state = "done";
  } catch (error) {
    if (error instanceof Problem) Object.assign(answer, { state: "failed", problem: error.plain() });
    else if (error.name === "AbortError") answer.state = "stopped";
    else throw error;
  }
  answer.seconds = (performance.now() - began) / 1000;
  return answer.problem;
}

export function isBlocked(choice) { return choice.finish === "content_filter"; }

/** What an answer says, without what was blocked. */
export function textOf(answer) {
  return answer.choices.filter(choice => choice.text && !isBlocked(choice))
    .map(choice => (choice.label ? `${choice.label}:\n${choice.text}` : choice.text)).join("\n\n");
}

/** Whether two answers are there to choose from, and none is chosen yet. */
export function isOpen(exchange) {
  return exchange.answers.length === 2 && exchange.vote === null &&
    exchange.answers.every(answer => answer.state === "done");
}

/** Whether it may be shown which policy an answer is of. */
export function isNamed(exchange) {
  return exchange.answers.length === 1 || exchange.vote !== null ||
    (exchange.answers.every(answer => answer.state !== "running") && !isOpen(exchange));
}

/** The answer that the conversation goes on with: the better one, the left one of equals; none without text. */
function goesOn(exchange) {
  if (exchange.forgotten) return undefined;
  const order = exchange.vote === "right" ? [1, 0] : [0, 1];
  return order.map(at => exchange.answers[at])
    .find(answer => answer && answer.state !== "failed" && textOf(answer) !== "");
}

/** The messages of a conversation; an exchange that was blocked, failed, or was deleted is left out. */
export function messagesOf(exchanges, system) {
  const said = exchanges.flatMap(exchange => {
    const answer = goesOn(exchange);
    return answer === undefined ? [] : [
      { role: "user", content: exchange.question }, { role: "assistant", content: textOf(answer) },
    ];
  });
  return [...(system ? [{ role: "system", content: system }] : []), ...said];
}

/** Keep the conversation over a reload; false when it is longer than the browser keeps. */
export function keep(exchanges) {
  try {
    sessionStorage.setItem(KEPT_UNDER, JSON.stringify(exchanges));
    return true;
  } catch {
    sessionStorage.removeItem(KEPT_UNDER);
    return false;
  }
}

/** The conversation as it was kept; answers that a reload cut are stopped. */
export function kept() {
  const exchanges = JSON.parse(sessionStorage.getItem(KEPT_UNDER) || "[]");
  for (const answer of exchanges.flatMap(exchange => exchange.answers)) {
    if (answer.state === "running") answer.state = "stopped";
    for (const choice of answer.choices) if (choice.why && choice.why.state === "asked") choice.why = null;
  }
  return exchanges;
}
