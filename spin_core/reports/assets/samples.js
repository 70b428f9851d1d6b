"use strict";
// Every text is set as text, never as markup: what models and people wrote is shown, and nothing of it is run.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const STEP = 30;
const FOLD = 900;
const BINS = 24;
const FIELDS = ["find", "end", "only", "least", "most", "sort"];
const MARKS = { cut: "cut", empty: "empty", looping: "looping", same: "same as the human" };
const pressed = new Set(data.versions.map((_, number) => number));
let found = [];
let drawn = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// What to show.

function lower(response) {
  response.lower ??= response.text.toLowerCase();
  return response.lower;
}

function holds(sample, text, answers) {
  sample.asked ??= sample.turns.map((turn) => turn.content).join("\n").toLowerCase();
  return sample.asked.includes(text) || lower(sample.real).includes(text) || answers.some((one) => lower(one).includes(text));
}

function shownAnswers(sample) {
  return sample.answers.filter((answer) => pressed.has(answer.version));
}

function wanted() {
  const value = (id) => at(id).value.trim();
  const tokens = (id, none) => (value(id) === "" ? none : Number(value(id)));
  return {
    text: at("find").value.toLowerCase(),
    end: value("end"),
    only: value("only"),
    least: tokens("least", 0),
    most: tokens("most", Infinity),
    sort: value("sort"),
  };
}

function fits(sample, want) {
  const answers = shownAnswers(sample);
  if (want.text && !holds(sample, want.text, answers)) return false;
  if (want.only === "differ" && new Set(answers.map((answer) => answer.text)).size < 2) return false;
  const mark = want.only === "differ" ? "" : want.only;
  if (!want.end && !mark && want.least === 0 && want.most === Infinity) return true;
  // One answer must be all that is asked for.
  return answers.some(
    (answer) =>
      (!want.end || (want.end === "length") === answer.marks.includes("cut")) &&
      (!mark || answer.marks.includes(mark)) &&
      answer.tokens >= want.least &&
      answer.tokens <= want.most,
  );
}

function shuffled(number) {
  let hash = Math.imul(number + 1, 0x9e3779b1);
  hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b);
  return (hash ^ (hash >>> 13)) >>> 0;
}

function order(sort) {
  const over = (sample, pick, values) => pick(...shownAnswers(sample).map(values));
  const keys = {
    longest: (sample) => -over(sample, Math.max, (answer) => answer.tokens),
    shortest: (sample) => over(sample, Math.min, (answer) => answer.tokens),
    margin: (sample) => over(sample, Math.min, (answer) => answer.margin ?? Infinity),
    random: (sample) => shuffled(sample.number),
  };
  if (!sort) return;
  const key = new Map(found.map((sample) => [sample, keys[sort](sample)]));
  found.sort((one, other) => (key.get(one) === key.get(other) ? one.number - other.number : key.get(one) - key.get(other)));
}

function update() {
  const want = wanted();
  found = data.samples.filter((sample) => fits(sample, want));
  order(want.sort);
  const all = data.samples.length.toLocaleString("en");
  at("count").textContent = `${found.length.toLocaleString("en")} of ${all} prompts`;
  at("none").hidden = found.length > 0;
  at("clear").hidden = !changed();
  at("list").replaceChildren();
  drawn = 0;
  summarise();
  draw();
  remember();
}

function changed() {
  return FIELDS.some((id) => at(id).value !== "") || pressed.size < data.versions.length;
}

// Statistics of what is shown.

function summarise() {
  const sides = [["human", found.map((sample) => sample.real)]];
  for (const number of [...pressed].sort((a, b) => a - b)) {
    sides.push([data.versions[number], found.flatMap((sample) => sample.answers.filter((answer) => answer.version === number))]);
  }
  const longest = sides.reduce((most, [, responses]) => responses.reduce((top, response) => Math.max(top, response.tokens), most), 0);
  const scored = sides.some(([, responses]) => responses.some((response) => response.margin !== undefined));
  const heads = ["", "responses", "median tokens", "lengths", ...Object.values(MARKS), ...(scored ? ["mean margin"] : [])];
  const table = element("table");
  const head = table.createTHead().insertRow();
  heads.forEach((text) => head.append(element("th", "", text)));
  const body = table.createTBody();
  for (const [name, responses] of sides) {
    const row = body.insertRow();
    if (name === "human") row.className = "human";
    row.append(element("th", "", name));
    const tokens = responses.map((response) => response.tokens).sort((a, b) => a - b);
    row.append(element("td", "", responses.length.toLocaleString("en")));
    row.append(element("td", "", tokens.length ? tokens[tokens.length >> 1].toLocaleString("en") : "–"));
    row.insertCell().append(histogram(tokens, longest));
    for (const mark of Object.keys(MARKS)) {
      const count = responses.filter((response) => response.marks.includes(mark)).length;
      const percent = responses.length ? Math.round((1000 * count) / responses.length) / 10 : 0;
      const none = name === "human" && mark === "same";
      row.append(element("td", count ? "" : "zero", none ? "–" : count ? `${count.toLocaleString("en")} (${percent} %)` : "0"));
    }
    const margins = responses.filter((response) => response.margin !== undefined).map((response) => response.margin);
    const mean = margins.reduce((sum, margin) => sum + margin, 0) / margins.length;
    if (scored) row.append(element("td", "", margins.length ? signed(mean) : "–"));
  }
  at("summary").replaceChildren(table);
}

function histogram(tokens, longest) {
  const counts = new Array(BINS).fill(0);
  for (const count of tokens) counts[Math.min(BINS - 1, Math.floor((BINS * count) / (longest + 1)))] += 1;
  const most = Math.max(1, ...counts);
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", `0 0 ${BINS * 4} 16`);
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `lengths from 0 to ${longest} tokens`);
  counts.forEach((count, bin) => {
    if (!count) return;
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = Math.max(1, (16 * count) / most);
    for (const [name, value] of Object.entries({ x: bin * 4, y: 16 - height, width: 3.4, height })) bar.setAttribute(name, value);
    picture.append(bar);
  });
  return picture;
}

function signed(value) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
}

// Drawing, a screenful at a time.

function draw() {
  const text = at("find").value.toLowerCase();
  at("list").append(...found.slice(drawn, drawn + STEP).map((sample) => card(sample, text)));
  drawn = Math.min(found.length, drawn + STEP);
}

function card(sample, text) {
  const made = element("li", "sample");
  made.tabIndex = -1;
  const ask = element("div", "ask");
  ask.append(element("span", "number", `#${sample.number}`));
  for (const turn of sample.turns) {
    const part = element("div", "turn");
    if (["user", "assistant", "system"].includes(turn.role)) part.classList.add(turn.role);
    if (turn.role) part.append(element("div", "role", turn.role));
    part.append(marked(turn.content, text));
    ask.append(part);
  }
  const sides = element("div", "sides");
  sides.append(side("human", sample.real, text, "side human"));
  sides.append(...shownAnswers(sample).map((answer) => side(answer.name, answer, text, "side")));
  made.append(ask, sides);
  const long = (one) => one.length > FOLD || one.split("\n", 16).length > 15;
  const texts = [...sample.turns.map((turn) => turn.content), sample.real.text, ...shownAnswers(sample).map((one) => one.text)];
  // The matching text may be far down.
  if (!text && texts.some(long)) {
    made.classList.add("folded");
    const button = element("button", "unfold", "Show all");
    button.type = "button";
    button.addEventListener("click", () => unfold(made));
    made.append(button);
  }
  return made;
}

function unfold(made) {
  const button = made.querySelector(".unfold");
  if (button) button.textContent = made.classList.toggle("folded") ? "Show all" : "Show less";
}

function side(name, response, text, className) {
  const made = element("section", className);
  const head = element("div", "head");
  head.append(element("span", "name", name), element("span", "", `${response.tokens.toLocaleString("en")} token${response.tokens === 1 ? "" : "s"}`));
  for (const mark of response.marks) head.append(element("span", `chip ${mark}`, MARKS[mark]));
  if (response.margin !== undefined) {
    const margin = element("span", response.margin < 0 ? "below" : "", `margin ${signed(response.margin)}`);
    margin.title = "How much more the player trained against this answer prefers the human response than the opponent did, in nats";
    head.append(margin);
  }
  const content = response.text.trim() ? marked(response.text.trim(), text) : element("div", "nothing", "nothing");
  made.append(head, content);
  return made;
}

function marked(text, find) {
  const made = element("div", "text");
  const small = text.toLowerCase();
  // Where lower case has another length, places in it are not places in the text.
  if (!find || small.length !== text.length) {
    made.textContent = text;
    return made;
  }
  let from = 0;
  for (let place = small.indexOf(find); place >= 0; place = small.indexOf(find, from)) {
    made.append(text.slice(from, place), element("mark", "", text.slice(place, place + find.length)));
    from = place + find.length;
  }
  made.append(text.slice(from));
  return made;
}

// The address remembers the filters, so that a view can be passed on.

function remember() {
  const state = new URLSearchParams();
  for (const id of FIELDS) if (at(id).value) state.set(id, at(id).value);
  if (pressed.size < data.versions.length) state.set("versions", [...pressed].sort((a, b) => a - b).join(" "));
  history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of FIELDS) at(id).value = state.get(id) ?? "";
  for (const id of FIELDS) if (at(id).value === "" && at(id).tagName === "SELECT") at(id).selectedIndex = 0;
  const chosen = state.has("versions") ? state.get("versions").split(" ").filter(Boolean).map(Number) : data.versions.keys();
  pressed.clear();
  for (const number of chosen) if (number in data.versions) pressed.add(number);
  showPressed();
}

// Controls.

function showPressed() {
  [...at("versions").children].forEach((button, number) => button.setAttribute("aria-pressed", pressed.has(number)));
}

function toggle(number) {
  if (!(number in data.versions)) return;
  if (!pressed.delete(number)) pressed.add(number);
  showPressed();
  update();
}

function clear() {
  for (const id of FIELDS) at(id).value = "";
  data.versions.forEach((_, number) => pressed.add(number));
  showPressed();
  update();
}

function step(by) {
  const cards = [...at("list").children];
  const place = cards.indexOf(document.activeElement.closest(".sample"));
  if (place + by >= drawn && drawn < found.length) draw();
  const next = at("list").children[Math.max(0, place + by)];
  if (next) {
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "start", behavior: "instant" });
  }
}

const KEYS = {
  "/": () => at("find").focus(),
  j: () => step(1),
  k: () => step(-1),
  c: clear,
  e: () => unfold(document.activeElement.closest(".sample") ?? document.createElement("li")),
  "?": () => at("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("keys").open) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const act = /^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : KEYS[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

data.versions.forEach((name, number) => {
  const button = element("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => toggle(number));
  at("versions").append(button);
});
let pause;
at("filters").addEventListener("input", (event) => {
  clearTimeout(pause);
  pause = setTimeout(update, event.target.id === "find" ? 120 : 0);
});
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("reset", (event) => {
  event.preventDefault();
  clear();
});
at("again").addEventListener("click", clear);
at("help").addEventListener("click", KEYS["?"]);
at("toggle").addEventListener("click", () => at("toggle").setAttribute("aria-expanded", at("more").classList.toggle("open")));
addEventListener("hashchange", () => {
  recall();
  update();
});
new IntersectionObserver((seen) => {
  if (seen.some((one) => one.isIntersecting) && drawn < found.length) draw();
}, { rootMargin: "1500px" }).observe(at("end-of-list"));
recall();
update();
