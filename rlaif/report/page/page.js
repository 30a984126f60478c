
"use strict";
(() => {
  const data = document.getElementById("rows");
  if (!data) return;
  const rows = JSON.parse(data.textContent);
  const at = id => document.getElementById(id);
  const FLAGS = {
    flip: "flips between the orders", loss: "a policy lost to the start policy",
    diverged: "reward up, gold down", invalid: "invalid verdicts"
  };
  const KINDS = { policies: "policies side by side", labels: "labelled pairs" };
  const ORDERS = { first: "shown first", second: "shown second", alone: "shown alone" };
  const texts = rows.map(row => JSON.stringify([row.id, row.prompt, row.sides, row.asked]).toLowerCase());
  let shown = [], place = 0;

  function element(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function box(value, label, group, count) {
    const outer = element("label"), input = element("input");
    input.type = "checkbox"; input.value = value; input.dataset.group = group; input.disabled = count === 0;
    input.addEventListener("change", filter);
    outer.append(input, " " + label + " (" + count.toLocaleString("en") + ")");
    at("filters").append(outer, " ");
  }

  function chosen(group) {
    return [...document.querySelectorAll("#filters input:checked")]
      .filter(input => input.dataset.group === group).map(input => input.value);
  }

  function filter() {
    const flags = chosen("flag"), kinds = chosen("kind"), words = at("search").value.toLowerCase();
    const needle = JSON.stringify(words).slice(1, -1), before = shown[place];
    shown = rows.map((_, index) => index).filter(index =>
      flags.every(flag => rows[index].flags.includes(flag)) &&
      (kinds.length === 0 || kinds.includes(rows[index].kind)) && texts[index].includes(needle));
    place = Math.max(0, shown.indexOf(before));
    show();
  }

  function block(label, facts, text) {
    const outer = element("div"), head = element("div", undefined, "role");
    head.append(element("b", label), facts ? " " + facts : "");
    const body = element("div", text === "" ? "(empty)" : text, "text");
    body.dir = "auto";
    outer.append(head, body);
    return outer;
  }

  function cell(answer) {
    return element("td", answer === undefined ? "–" : typeof answer === "number" ? answer.toFixed(3) : answer);
  }

  function verdicts(asked) {
    if (asked.length === 0) return [element("p", "The judge was not asked about this row.", "role")];
    const orders = Object.keys(ORDERS).filter(order => asked.some(each => order in each.answers));
    const judged = asked.some(each => each.judge !== "");
    const table = element("table"), head = element("tr"), body = element("tbody");
    table.append(element("caption", "What the judge said: P that the completion named is the better one"));
    for (const name of ["principle", "completion", ...(judged ? ["judge"] : []), ...orders.map(order => ORDERS[order])]) {
      const made = element("th", name); made.scope = "col"; head.append(made);
    }
    for (const each of asked) {
      const line = element("tr"), first = element("th", each.principle);
      first.scope = "row";
      if (each.flip) first.append(element("span", "flips", "badge"));
      line.append(first, element("td", each.of), ...(judged ? [element("td", each.judge)] : []),
        ...orders.map(order => cell(each.answers[order])));
      body.append(line);
    }
    const top = element("thead"); top.append(head); table.append(top, body);
    return [table];
  }

  function show() {
    const row = rows[shown[place]], none = row === undefined;
    at("row").hidden = none; at("link").hidden = none;
    at("previous").disabled = none || place === 0;
    at("next").disabled = none || place >= shown.length - 1;
    at("position").textContent = none ? "no row matches"
      : (place + 1).toLocaleString("en") + " of " + shown.length.toLocaleString("en");
    if (none) return;
    const title = at("row-title");
    title.replaceChildren(row.id, ...row.flags.map(flag => element("span", FLAGS[flag], "badge")));
    at("prompt").replaceChildren(...row.prompt.map(([role, text]) => block(role, "", text)));
    at("sides").replaceChildren(...row.sides.map(side => block(side.name, side.facts, side.text)));
    at("asked").replaceChildren(...verdicts(row.asked));
    at("link").href = "#row=" + encodeURIComponent(row.id);
  }

  function move(step) {
    const to = place + step;
    if (to < 0 || to >= shown.length) return;
    place = to;
    show();
    history.replaceState(null, "", at("link").href);
  }

  function follow() {
    if (!location.hash.startsWith("#row=")) return;
    let wanted = "";
    try { wanted = decodeURIComponent(location.hash.slice(5)); } catch { return; }
    const index = rows.findIndex(row => row.id === wanted);
    if (index < 0) { at("position").textContent = "the row of this link is not on the page"; return; }
    for (const input of document.querySelectorAll("#filters input")) input.checked = false;
    at("search").value = "";
    filter();
    place = shown.indexOf(index);
    show();
    at("samples").scrollIntoView();
    at("row").focus({ preventScroll: true });
  }

  document.addEventListener("keydown", event => {
    const typing = event.target.matches("input[type=search], textarea, select");
    if (!at("keys").checked || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "/") { event.preventDefault(); at("search").focus(); }
  });
  at("previous").addEventListener("click", () => move(-1));
  at("next").addEventListener("click", () => move(1));
  at("search").addEventListener("input", filter);
  window.addEventListener("hashchange", follow);
  for (const kind of Object.keys(KINDS)) box(kind, KINDS[kind], "kind", rows.filter(row => row.kind === kind).length);
  for (const flag of Object.keys(FLAGS)) box(flag, FLAGS[flag], "flag", rows.filter(row => row.flags.includes(flag)).length);
  at("browser").hidden = false;
  filter();
  follow();
})();
