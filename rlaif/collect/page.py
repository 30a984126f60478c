"""The page: one file, without anything from elsewhere. All that comes from data is set as text, never as
HTML."""

from __future__ import annotations

__all__ = ["PAGE"]

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>rlaif: which is better?</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style nonce="NONCE">
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #bbb; --soft: #555; --bad: #a00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #555; --soft: #a8a8a8; --bad: #ff8a80 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); background: var(--paper) }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem; margin: .4rem 0 }
.role { color: var(--soft); font-size: .85rem }
#sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
@media (max-width: 40rem) { #sides { grid-template-columns: 1fr } }
#sides .text { max-height: 55vh; overflow: auto }
#conversation { max-height: 35vh; overflow: auto }
#buttons { position: sticky; bottom: 0; background: var(--paper); padding: .7rem 0; display: flex; gap: .6rem;
  flex-wrap: wrap }
button { font: inherit; padding: .4rem .9rem }
#problem { color: var(--bad) }
progress { width: 100% }
</style></head><body>
<p id="count" role="status"></p><progress id="bar" value="0" max="1" aria-label="labelled"></progress>
<p id="problem" role="alert"></p>
<main id="work"><h1 class="role">Which completion is better?</h1><div id="conversation"></div>
<details id="notes" hidden><summary>reference and criteria</summary><div id="known"></div></details>
<div id="sides"><section><h2 class="role">left (1)</h2><div class="text" id="left"></div></section>
<section><h2 class="role">right (2)</h2><div class="text" id="right"></div></section></div></main>
<div id="end" hidden><h1>All pairs are done</h1><div class="text" id="summary"></div></div>
<div id="buttons">
<button data-click="left">left is better (1)</button><button data-click="right">right is better (2)</button>
<button data-click="equal">equal (0)</button><button data-click="skip">skip (s)</button>
<button data-do="undo">undo (u)</button><button data-do="finish">finish</button></div>
<noscript>This page needs JavaScript.</noscript>
<script nonce="NONCE">
"use strict";
const at = id => document.getElementById(id);
const KEYS = {"1": "left", "2": "right", "0": "equal", "s": "skip"};
let pair = null, busy = false, over = false;
function block(role, text) {
  const label = document.createElement("div"), body = document.createElement("div");
  label.className = "role"; label.textContent = role;
  body.className = "text"; body.textContent = text;
  return [label, body];
}
function show(state) {
  pair = state.pair;
  at("count").textContent = state.done + " of " + state.total + " pairs done";
  at("bar").max = state.total; at("bar").value = state.done;
  at("work").hidden = pair === null; at("end").hidden = pair !== null;
  for (const button of document.querySelectorAll("[data-click]")) button.disabled = pair === null;
  if (pair === null) { at("summary").textContent = state.summary.join("\\n"); return; }
  at("conversation").replaceChildren(...state.conversation.flatMap(turn => block(turn.role, turn.content)));
  at("notes").hidden = state.notes.length === 0;
  at("known").replaceChildren(...state.notes.flatMap(note => block(note[0], note[1])));
  at("left").textContent = state.left; at("right").textContent = state.right;
  at("left").scrollTop = at("right").scrollTop = 0;
  scrollTo(0, 0);
}
async function ask(path, body) {
  if (busy || over) return;
  busy = true;
  try {
    const options = body === undefined ? {} :
      {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
    const answer = await fetch(path, options), told = await answer.json();
    at("problem").textContent = told.problem || "";
    if (told.finished) {
      over = true; pair = null; at("work").hidden = true; at("end").hidden = false;
      at("buttons").hidden = true; at("summary").textContent = told.summary.join("\\n");
      at("count").textContent = "Finished: this page can be closed.";
    } else if (told.state) show(told.state);
  } catch (error) {
    at("problem").textContent = "rlaif does not answer: start it again; nothing was lost.";
  } finally { busy = false; }
}
function click(which) { if (pair !== null) ask("answer", {pair: pair, click: which}); }
for (const button of document.querySelectorAll("button")) button.addEventListener("click", () => {
  button.blur();
  if (button.dataset.click) click(button.dataset.click); else ask(button.dataset.do, {});
});
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "u") ask("undo", {}); else if (KEYS[event.key]) click(KEYS[event.key]);
});
ask("state");
</script></body></html>
"""
"""`NONCE` stands for the nonce of the content security policy."""
