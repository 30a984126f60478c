// Conversation to elements. Whatever models, people or the server wrote becomes a text node.

import { isBlocked, isNamed, isOpen, keptIds, textOf } from "./chat.js";
import { problemText, word } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const SIDES = ["left", "right"];
const NARROW = { left: "upper", right: "lower" };

/** An element; `rest` holds attributes, `class`, and handlers named `onclick` and so on. */
export function make(name, rest = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(rest)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== false));
  return made;
}

function icon(name) {
  const made = document.createElementNS(SVG, "svg"), use = document.createElementNS(SVG, "use");
  made.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  made.append(use);
  return made;
}

function tool(name, label, key, onclick, pressed) {
  return make("button", {
    type: "button", class: "quiet icon tool", title: label, "aria-label": label, "data-key": key, onclick,
    "aria-pressed": pressed === undefined ? null : String(pressed),
  }, icon(name));
}

// Text ------------------------------------------------------------------------------------------------------------

/** Paragraphs and fenced code of a text. */
function blocksOf(text) {
  const blocks = [];
  let fence = null, held = [];
  const close = (kind, note = "") => {
    const said = kind === "code" ? held.join("\n") : held.join("\n").trim();
    if (kind === "code" || said) blocks.push({ kind, text: said, note });
    held = [];
  };
  for (const line of text.split("\n")) {
    const mark = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/.exec(line);
    if (fence === null && mark) {
      close("p");
      fence = { mark: mark[1], note: mark[2].trim() };
    } else if (fence !== null && mark && mark[1].startsWith(fence.mark) && !mark[2]) {
      close("code", fence.note);
      fence = null;
    } else if (fence === null && line.trim() === "") close("p");
    else held.push(line);
  }
  close(fence === null ? "p" : "code", fence ? fence.note : "");
  return blocks;
}

function blockElement({ kind, text, note }) {
  if (kind === "p") return make("p", { dir: "auto" }, text);
  return make("figure", {}, note ? make("figcaption", {}, note) : null, make("pre", {}, make("code", {}, text)));
}

/** Show a text in `element`; what already stands there and is the same is left alone. */
export function showText(element, text) {
  const shown = element.blocks || [], wanted = blocksOf(text);
  const same = (one, other) => one && ["kind", "text", "note"].every(name => one[name] === other[name]);
  let at = 0;
  while (at < wanted.length && same(shown[at], wanted[at])) at += 1;
  while (element.childNodes.length > at) element.lastChild.remove();
  element.append(...wanted.slice(at).map(blockElement));
  element.blocks = wanted;
}

// Answers ---------------------------------------------------------------------------------------------------------

/** What went wrong, with the seconds until it may be tried again, and the button that tries. */
export function problemBox(problem, onagain) {
  const waits = Boolean(onagain) && problem.until !== null && problem.until > Date.now();
  const box = make("div", { class: "note bad" }, icon("warn"), make("div", {},
    make("p", {}, problemText(problem)),
    problem.said ? make("p", { class: "said", dir: "auto" }, problem.said) : null,
    waits ? make("p", { class: "wait", "data-until": problem.until }) : null,
    onagain ? make("button", {
      type: "button", "data-key": "retry", "data-until": problem.until, disabled: waits, onclick: onagain,
    }, word("try_again")) : null));
  countDown(box);
  return box;
}

/** Bring the seconds of all waiting problems up to date. */
export function countDown(root) {
  for (const element of root.querySelectorAll("[data-until]")) {
    const seconds = Math.ceil((Number(element.dataset.until) - Date.now()) / 1000);
    if (element.tagName === "BUTTON") element.disabled = seconds > 0;
    else if (seconds > 0) element.textContent = word("wait", { seconds });
    else element.remove();
  }
}

function blockedBox(choice) {
  const found = choice.moderation;
  const why = found && make("p", {}, word("category"), " ", make("span", { class: "own" }, found.category),
    " · ", word("score_is", { score: Number(found.score).toFixed(2) }));
  return make("div", { class: "note warn" }, icon("shield"),
    make("div", {}, make("strong", {}, word("blocked")), why, make("p", { class: "said" }, word("left_out"))));
}

/** The scores of every principle, the highest first. */
function whyBox(why) {
  if (why.state === "asked") return make("p", { class: "soft" }, word("why_wait"));
  if (why.state === "failed") {
    const problem = problemText(why.problem);
    return make("p", { class: "soft" }, word("why_failed", { problem }), " ", why.problem.said);
  }
  const rows = Object.entries(why.scores).sort((one, other) => other[1] - one[1]).map(([name, score]) => {
    const bar = make("span", { class: "bar" }), breaks = why.categories[name] === true;
    bar.style.setProperty("--share", `${Math.min(1, Math.max(0, score)) * 100}%`);
    return make("tr", { class: breaks ? "breaks" : null }, make("th", { scope: "row" }, name),
      make("td", { class: "score" }, bar, Number(score).toFixed(2)),
      make("td", {}, word(breaks ? "breaks" : "keeps")));
  });
  if (rows.length === 0) return make("p", { class: "soft" }, word("why_none"));
  const heads = ["principle", "score", "verdict"].map(key => make("th", { scope: "col" }, word(key)));
  return make("div", { class: "scroll" }, make("table", { class: "why" }, make("caption", {}, word("why_title")),
    make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows)));
}

function flagForm(place, acts) {
  const input = make("input", {
    type: "text", maxlength: 1000, required: true, "data-key": `flag-text-${place.choice.index}`,
    "aria-label": word("flag_label"), placeholder: word("flag_label"),
    value: place.choice.draft || place.choice.flag || "",
    oninput: event => { place.choice.draft = event.target.value; },
  });
  return make("form", {
    class: "flag",
    onsubmit: event => { event.preventDefault(); acts.flag(place, input.value.trim()); },
    onkeydown: event => { if (event.key === "Escape") acts.openFlag(place, false); },
  }, input, make("button", { type: "submit", class: "main" }, word("flag_send")),
  make("button", { type: "button", onclick: () => acts.openFlag(place, false) }, word("cancel")));
}

/** What may be done with a choice. `place` is {exchange, answer, choice}. */
function choiceTools(place, can, acts) {
  const { answer, choice } = place, key = name => `${name}-${choice.index}`;
  const votes = answer.stored ? [
    tool("up", word("up"), key("up"), () => acts.thumb(place, "up"), choice.vote === "up"),
    tool("down", word("down"), key("down"), () => acts.thumb(place, "down"), choice.vote === "down"),
    tool("flag", word("flag"), key("flag"), () => acts.openFlag(place, true), choice.flag !== null),
  ] : [];
  const copies = choice.text && navigator.clipboard;
  return make("div", { class: "tools" },
    copies ? tool("copy", word("copy"), key("copy"), () => acts.copy(choice.text)) : null, votes,
    can.why ? tool("why", word("why"), key("why"), () => acts.why(place), choice.why !== null) : null,
    answer.choices.length === 1 ? answerTools(place.exchange, answer, can, acts) : null);
}

/** What may be done with a whole answer. */
function answerTools(exchange, answer, can, acts) {
  const repeats = can.last === exchange && exchange.answers.length === 1 && answer.problem === null;
  return [
    repeats ? tool("again", word("again"), "again", () => acts.again(exchange)) : null,
    keptIds(exchange).length > 0 ? tool("remove", word("forget"), "forget", () => acts.forget(exchange)) : null,
  ].filter(Boolean);
}

function choiceElement(place, can, acts) {
  const { answer, choice } = place, text = make("div", { class: "text" });
  showText(text, choice.text);
  const ended = answer.state !== "running";
  return make("section", { class: "choice", "data-index": choice.index, "aria-label": choice.label || null },
    choice.label ? make("h3", { class: "label" }, choice.label) : null, text,
    ended && choice.text === "" && answer.state === "done" && !isBlocked(choice)
      ? make("p", { class: "soft" }, word("empty_note")) : null,
    isBlocked(choice) ? blockedBox(choice) : null,
    choice.finish === "length" ? make("p", { class: "soft" }, word("cut_note")) : null,
    ended && isNamed(place.exchange) ? choiceTools(place, can, acts) : null,
    choice.flagging ? flagForm(place, acts) : null,
    choice.why ? whyBox(choice.why) : null);
}

function meta(exchange, answer) {
  const seconds = answer.seconds === null || answer.problem ? null : answer.seconds.toFixed(1);
  const used = seconds === null ? null : answer.tokens === null ? word("seconds", { seconds })
    : word("usage", { tokens: answer.tokens, seconds });
  return [
    answer.directives.length
      ? make("span", { class: "tag" }, word("directives", { ids: answer.directives.join(", ") })) : null,
    answer.stored ? make("span", { class: "tag kept", title: word("kept_hint") }, word("kept")) : null,
    used ? make("span", { class: "used" }, used) : null,
  ];
}

/** "Left" beside its answer on a wide page, "First" above it on a narrow one. */
function sideWord(side, end = "") {
  return [
    make("span", { class: "wide" }, word(side + end)), make("span", { class: "narrow" }, word(NARROW[side])),
  ];
}

function answerHead(exchange, answer, at) {
  const named = isNamed(exchange), two = exchange.answers.length === 2;
  const won = exchange.vote === SIDES[at] ? "won" : exchange.vote === "tie" ? "tied" : null;
  return make("div", { class: "who" },
    two ? make("span", { class: "side" }, sideWord(SIDES[at])) : null,
    named ? make("span", { class: "model" }, answer.model) : null,
    won ? make("span", { class: "tag won" }, word(won)) : null,
    named && answer.state !== "running" ? meta(exchange, answer) : null);
}

function answerElement(exchange, answer, at, can, acts) {
  const waiting = answer.state === "running" && answer.choices.length === 0;
  const again = can.last === exchange && isNamed(exchange) ? () => acts.again(exchange) : null;
  return make("div", { class: "answer", "data-at": at, "aria-busy": String(answer.state === "running") },
    answerHead(exchange, answer, at),
    waiting ? make("p", { class: "dots", role: "img", "aria-label": word("answering") },
      [1, 2, 3].map(() => make("i"))) : null,
    make("div", { class: answer.choices.length > 1 ? "choices both" : "choices" },
      answer.choices.map(choice => choiceElement({ exchange, answer, choice }, can, acts))),
    answer.state === "stopped" ? make("p", { class: "soft" }, word("stopped_note")) : null,
    answer.problem ? problemBox(answer.problem, again) : null,
    answer.choices.length !== 1 && answer.state !== "running" && isNamed(exchange)
      ? make("div", { class: "tools" }, answerTools(exchange, answer, can, acts)) : null);
}

function voteBar(exchange, acts) {
  const button = (vote, content) => make("button", {
    type: "button", "data-key": `vote-${vote}`, class: vote === "skip" ? "link" : "",
    onclick: () => acts.choose(exchange, vote),
  }, content);
  return make("div", { class: "vote", role: "group", "aria-label": word("which") },
    make("strong", {}, word("which")),
    make("div", { class: "buttons" }, button("left", sideWord("left", "_better")), button("tie", word("tie")),
      button("right", sideWord("right", "_better"))),
    button("skip", word("no_vote")));
}

/** What became of a choice between two answers. */
function voteNote(exchange) {
  const { sent } = exchange;
  if (sent === null) return null;
  const text = sent.problem ? word("vote_failed", { problem: problemText(sent.problem) }) : word(sent.key);
  return make("p", { class: "soft" }, text);
}

/** One exchange. `can` says whether there are reasons, and which exchange is the last; `acts` what buttons do. */
export function exchangeElement(exchange, can, acts) {
  const two = exchange.answers.length === 2;
  return make("article", { class: two ? "exchange two" : "exchange" },
    make("div", { class: "question" }, make("span", { class: "unseen" }, `${word("you")}: `),
      make("p", { dir: "auto" }, exchange.question)),
    make("div", { class: "answers" },
      exchange.answers.map((answer, at) => answerElement(exchange, answer, at, can, acts))),
    isOpen(exchange) ? voteBar(exchange, acts) : null, two ? voteNote(exchange) : null,
    exchange.forgotten ? make("p", { class: "soft" }, word("left_out")) : null);
}

/** Bring the texts of a streaming exchange up to date; false when it has to be made anew. */
export function refresh(article, exchange) {
  return exchange.answers.every((answer, at) => {
    const sections = [...article.querySelectorAll(`.answer[data-at="${at}"] .choice`)];
    if (sections.length !== answer.choices.length) return false;
    return answer.choices.every((choice, number) => {
      if ((sections[number].getAttribute("aria-label") || "") !== choice.label || isBlocked(choice)) return false;
      showText(sections[number].querySelector(".text"), choice.text);
      return true;
    });
  });
}

/** What a screen reader is told of an exchange that has ended. */
export function spoken(exchange) {
  return exchange.answers.map((answer, at) => {
    const who = exchange.answers.length === 2 ? word(SIDES[at]) : answer.model;
    const blocked = answer.choices.some(isBlocked) ? [word("blocked")] : [];
    const stopped = answer.state === "stopped" ? [word("stopped")] : [];
    const ended = answer.problem ? [problemText(answer.problem)] : stopped;
    return word("answered", { who, text: [textOf(answer), ...blocked, ...ended].filter(Boolean).join(" ") });
  }).join("\n");
}
