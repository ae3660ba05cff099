"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const LANE = 26, TOP = 24, BAR = 14, UNSURE = Math.log(0.5);
const shared = { axis: "clock", zoom: 1, scale: 1 };  // of both sides; scale: pixels of a token
const chosen = { problem: null, methods: ["", ""] };  // no second method: the first one alone

// ---- words

const visible = s => s.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5") || "\u2205";
const spaced = s => s.replace(/_/g, " ");
const plural = (count, what) => count.toLocaleString("en") + " " + what + (count === 1 ? "" : "s");

function node(name, options = {}, ...inside) {
  const made = document.createElement(name);
  Object.assign(made, options);
  made.append(...inside);
  return made;
}

// ---- problems, each with its runs by method

const label = run => run.method + (run.sample ? ", sample " + (run.sample + 1) : "");
const problems = new Map();
for (const run of data.runs) {
  const name = run.number + "\n" + run.question;
  if (!problems.has(name)) problems.set(name, new Map());
  problems.get(name).set(label(run), run);
}
const methods = [...new Set(data.runs.map(label))];
const WHICH = {
  "all": () => true,
  "where a method forked": (...runs) => runs.some(run => run && run.forked),
  "correct": run => run.correct,
  "incorrect": run => !run.correct,
  "where the two differ in result": (run, other) => other && run.correct !== other.correct,
};
const runsOf = name => chosen.methods.map(method => problems.get(name).get(method));

function mark(run) {
  const word = run.correct ? "correct" : "incorrect";
  return node("b", { className: run.correct ? "good" : "bad", textContent: run.correct ? "\u2713" : "\u2717", ariaLabel: word });
}
function brief(run) {
  const about = label(run) + " \u00b7 path " + run.counts["critical path"] + " \u00b7 " + plural(run.counts.threads, "thread");
  return node("small", {}, mark(run), about);
}
function list() {
  const asked = WHICH[$("which").value];
  const kept = [...problems.keys()].filter(name => runsOf(name)[0] && asked(...runsOf(name)));
  $("count").textContent = kept.length + " of " + plural(problems.size, "problem");
  $("list").replaceChildren(...kept.map(name => {
    const runs = runsOf(name).filter(Boolean);
    const button = node("button", { onclick: () => open(name) }, runs[0].question, ...runs.map(brief));
    button.dataset.problem = name;
    return node("li", {}, button);
  }));
  markCurrent();
}
function markCurrent() {
  for (const button of $("list").querySelectorAll("button")) button.setAttribute("aria-current", button.dataset.problem === chosen.problem);
}

function open(name) {
  chosen.problem = name;
  markCurrent();
  const runs = runsOf(name);
  remember(runs.filter(Boolean).map(run => data.runs.indexOf(run)).join());
  $("question").textContent = runs[0].question;
  const sources = new Set(runs.filter(Boolean).flatMap(run => run.source));
  const more = [2, 3].filter(source => sources.has(source)).map(source => data.sources[source]);
  $("key-more").replaceChildren(...more.map(source => node("span", {}, node("i", { className: source }), source + " ")));
  sides.forEach((side, i) => side.open(runs[i]));
  draw();
}
function remember(place) {
  try { history.replaceState(null, "", "#" + place); } catch (error) { if (error.name !== "SecurityError") throw error; }  // in a frame
}
function choose(first, second) {
  chosen.methods = [first, second === first ? "" : second];
  $("method-0").value = first;
  $("method-1").replaceChildren(...["", ...methods.filter(m => m !== first)].map(m => node("option", { value: m, textContent: m || "none" })));
  $("method-1").value = chosen.methods[1];
  if (!problems.get(chosen.problem)?.get(first)) chosen.problem = [...problems.keys()].find(name => problems.get(name).get(first));
  list();
  open(chosen.problem);
  const current = $("list").querySelector("[aria-current=true]");
  if (current) $("list").scrollTop = current.offsetTop - $("list").offsetTop;
}

// ---- one method on the problem: its result, its timeline, and the text of one thread

class Side {
  constructor() {
    const made = $("side").content.cloneNode(true);
    for (const part of made.querySelectorAll("[class]")) this[part.classList[0]] ??= part;
    this.parts = [...made.children];
    this.run = null;
    this.lane = 0;
    this.entry = -1;
    this.plot.addEventListener("pointermove", event => this.moved(event));
    this.plot.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") hide(); });
    this.plot.addEventListener("click", event => this.clicked(event));
    this.scroll.addEventListener("keydown", event => this.pressed(event));
    this.scroll.addEventListener("scroll", () => { for (const side of sides) side.scroll.scrollLeft = this.scroll.scrollLeft; });
    this.text.addEventListener("pointerover", event => { if (event.target.dataset.entry) this.point(Number(event.target.dataset.entry)); });
  }

  open(run) {
    this.run = run;
    this.entry = -1;
    for (const part of this.parts) part.hidden = !run;
    if (!run) return;
    const verdict = (run.correct ? "correct" : "incorrect") + (run.stop ? ", stopped: " + spaced(run.stop) : "");
    const answer = run.answer === null ? "no answer of valid format" : node("code", { textContent: run.answer });
    this.method.textContent = label(run);
    this.verdict.replaceChildren(node("span", { className: run.correct ? "good" : "bad", textContent: verdict }), " \u00b7 ", answer);
    this.counts.replaceChildren(...Object.entries(run.counts).map(([name, value]) =>
      node("div", {}, node("dt", { textContent: name }), node("dd", { textContent: value.toLocaleString("en") }))));
    this.machine.textContent = run.machine;
    this.lane = Math.max(0, run.lanes.findIndex(l => run.source.slice(...l.span).includes(0)));  // the first that generated something
    this.read();
  }

  // -- places
  word(e) { return visible(data.strings[this.run.token[e]]); }
  generated(e) { return this.run.source[e] === 0; }
  width(e) { return shared.axis === "clock" || this.generated(e) ? 1 : 0; }
  start(e) { return this.run[shared.axis][e]; }
  end(e) { return this.start(e) + this.width(e); }
  span() { return this.run.token.reduce((most, _, e) => Math.max(most, this.end(e)), 1); }
  room() { return Math.max(100, this.scroll.clientWidth - 14); }
  laneOf(e) { return this.run.lanes.findIndex(l => l.span[0] <= e && e < l.span[1]); }
  nearest(i, x) {
    const l = this.run.lanes[i];
    let best = l.span[0], least = Infinity;
    for (let e = l.span[0]; e < l.span[1]; e++) {
      const far = Math.abs(this.start(e) + this.width(e) / 2 - x);
      if (far < least) { least = far; best = e; }
    }
    return best;
  }
  under(event) {
    const box = this.plot.getBoundingClientRect(), i = Math.floor((event.clientY - box.top - TOP) / LANE);
    return i >= 0 && i < this.run.lanes.length ? [i, this.nearest(i, (event.clientX - box.left) / shared.scale)] : null;
  }

  // -- the timeline
  shape(name, attributes, text) {
    const made = document.createElementNS(this.plot.namespaceURI, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    this.plot.append(made);
    return made;
  }
  draw(span) {
    const scale = shared.scale, wide = span * scale + 12, lanes = this.run.lanes, high = TOP + lanes.length * LANE;
    this.plot.replaceChildren();
    this.plot.setAttribute("width", wide);
    this.plot.setAttribute("height", high + 6);
    lanes.forEach((l, i) => this.shape("rect", { class: i === this.lane ? "lane on" : "lane", x: 0, y: TOP + i * LANE, width: wide, height: LANE }));
    this.ruler(span, high);
    for (const [from, to] of this.run.forks) this.connect("fork", Math.min(this.end(from), this.start(to)), from, to);
    for (const [from, to] of this.run.joins) this.connect("join", this.end(from), from, to);
    lanes.forEach((l, i) => this.bars(l, TOP + i * LANE + (LANE - BAR) / 2));
    this.cursor = this.shape("line", { class: "cursor", y1: 18, y2: high, visibility: "hidden" });
    this.unit = this.shape("rect", { class: "unit", height: BAR + 4, rx: 2, visibility: "hidden" });
    this.names.replaceChildren(...lanes.map((l, i) => this.name(l, i)));
    if (this.entry >= 0) this.point(this.entry);
  }
  ruler(span, high) {
    let step = 1;
    for (let i = 0; step * shared.scale < 70; i++) step *= i % 3 === 1 ? 2.5 : 2;
    for (let x = 0; x <= span; x += step) {
      const at = x * shared.scale;
      this.shape("line", { class: "grid", x1: at, x2: at, y1: 18, y2: high });
      this.shape("text", { x: at + (x ? 0 : 1), y: 13, "text-anchor": x ? "middle" : "start" }, x.toLocaleString("en"));
    }
  }
  name(l, i) {
    const options = { title: "thread " + l.name + ", " + spaced(l.stop), onclick: () => this.pick(i) };
    const button = node("button", options, node("span", { textContent: l.name }), node("small", { textContent: l.span[1] - l.span[0] }));
    button.style.paddingLeft = 8 + 14 * l.level + "px";
    button.setAttribute("aria-pressed", i === this.lane);
    return button;
  }
  bars(l, y) {
    const run = this.run, scale = shared.scale;
    for (let e = l.span[0]; e < l.span[1];) {
      const first = e, source = run.source[e];
      while (++e < l.span[1] && run.source[e] === source && this.start(e) === this.end(e - 1));
      const x = this.start(first), w = (this.end(e - 1) - x) * scale;
      this.shape("rect", { class: data.sources[source], x: x * scale - (w ? 0 : 1), y, width: Math.max(2, w), height: BAR, rx: Math.min(3, w / 3) });
      for (let t = first; t < e; t++) {
        const left = this.start(t) * scale;
        if (source === 0 && run.logprob[t] !== null && run.logprob[t] < UNSURE) this.shape("rect", { class: "unsure", x: left, y: y + BAR - 4, width: Math.max(1, scale), height: 4 });
        if (scale >= 9 && this.width(t) && this.word(t).length * 6.7 <= scale) this.shape("text", { class: "glyph" + (source === 1 ? " dark" : ""), x: left + scale / 2, y: y + 11, "text-anchor": "middle" }, this.word(t));
      }
    }
  }
  connect(kind, leaves, from, to) {
    const y1 = TOP + (this.laneOf(from) + 0.5) * LANE, y2 = TOP + (this.laneOf(to) + 0.5) * LANE;
    const a = leaves * shared.scale, b = this.start(to) * shared.scale;
    const r = Math.min(6, Math.abs(y2 - y1) / 2), side = Math.sign(y2 - y1);
    const down = `M${a} ${y1}V${y2 - side * r}Q${a} ${y2} ${a + r} ${y2}H${Math.max(b, a)}`;
    const up = `M${a} ${y1}H${Math.max(a, b - r)}Q${b} ${y1} ${b} ${y1 + side * r}V${y2}`;
    this.shape("path", { class: kind, d: kind === "fork" ? down : up });
  }

  // -- the text
  pick(i) {
    this.lane = i;
    this.entry = -1;
    hide();
    draw();
    this.read();
  }
  read() {
    const l = this.run.lanes[this.lane], parts = [];
    if (!l) { this.thread.textContent = "Nothing was fed or generated."; this.text.replaceChildren(); return; }
    let made = 0;
    for (let e = l.span[0]; e < l.span[1]; e++) {
      const chance = this.run.logprob[e], part = node("span", { textContent: data.strings[this.run.token[e]], title: this.about(e) });
      part.dataset.entry = e;
      if (!this.generated(e)) part.className = "given";
      else if (chance !== null) part.style.backgroundColor = `rgba(var(--shade), ${Math.min(0.75, -chance / 4).toFixed(3)})`;
      made += this.generated(e);
      parts.push(part);
    }
    const end = l.stop === "end" ? "ended by itself" : "stopped: " + spaced(l.stop);
    this.thread.textContent = `Thread ${l.name}: ${made.toLocaleString("en")} generated, ${(parts.length - made).toLocaleString("en")} fed, ${end}`;
    this.text.replaceChildren(...parts);
  }
  about(e) {
    const p = this.run.logprob[e], name = data.sources[this.run.source[e]];
    const chance = p === null ? "" : `, log-prob ${p.toFixed(3)} (${(100 * Math.exp(p)).toFixed(1)} %)`;
    return (name === "sampled" ? "generated" : name) + chance + ", clock " + this.run.clock[e] + ", critical path " + (this.run.count[e] + this.generated(e));
  }

  // -- one token
  point(e) {
    this.entry = e;
    const x = this.start(e) * shared.scale, place = { x: x - 1, width: Math.max(2, this.width(e) * shared.scale) + 2 };
    place.y = TOP + this.laneOf(e) * LANE + (LANE - BAR) / 2 - 2;
    for (const key in place) this.unit.setAttribute(key, place[key]);
    for (const key of ["x1", "x2"]) this.cursor.setAttribute(key, x);
    for (const part of [this.cursor, this.unit]) part.setAttribute("visibility", "visible");
    for (const part of this.text.querySelectorAll("span")) part.classList.toggle("at", part.dataset.entry === String(e));
  }
  tip(e, x, y) {
    const l = this.run.lanes[this.laneOf(e)];
    const around = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, i) => this.word(from + i)).join("");
    const code = node("code", {}, around(Math.max(l.span[0], e - 14), e), node("b", { textContent: this.word(e) }), around(e + 1, Math.min(l.span[1], e + 9)));
    const box = $("tip");
    box.replaceChildren(code, node("p", { textContent: "thread " + l.name + ": " + this.about(e) }));
    box.hidden = false;
    box.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.offsetWidth - 6)) + "px";
    box.style.top = (y + 18 + box.offsetHeight > innerHeight ? y - 12 - box.offsetHeight : y + 18) + "px";
  }
  moved(event) {
    const at = this.under(event);
    if (!at) { hide(); return; }
    this.point(at[1]);
    this.tip(at[1], event.clientX, event.clientY);
  }
  clicked(event) {
    const at = this.under(event);
    if (at && at[0] !== this.lane) this.pick(at[0]);
    if (at) this.moved(event);
  }
  pressed(event) {
    if (event.key === "Escape") { hide(); return; }
    const lanes = this.run.lanes, l = lanes[this.lane];
    if (!l) return;
    const fresh = this.entry < 0 || this.laneOf(this.entry) !== this.lane, at = fresh ? l.span[0] : this.entry, last = l.span[1] - 1;
    const go = { ArrowRight: fresh ? at : Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, l.span[0]), Home: l.span[0], End: last }[event.key];
    const turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (turn) {
      const next = Math.max(0, Math.min(lanes.length - 1, this.lane + turn)), x = this.start(at);
      if (next !== this.lane) { this.pick(next); this.show(this.nearest(next, x)); }
    } else if (go !== undefined) this.show(go); else return;
    event.preventDefault();
  }
  show(e) {
    this.point(e);
    const x = this.start(e) * shared.scale, box = this.scroll;
    if (x < box.scrollLeft + 20 || x > box.scrollLeft + box.clientWidth - 40) box.scrollLeft = x - box.clientWidth / 2;
    const place = this.unit.getBoundingClientRect();
    this.tip(e, place.left, place.bottom - 8);
    this.said.textContent = this.word(e) + ", thread " + this.run.lanes[this.laneOf(e)].name + ", " + this.about(e);
  }
}

// ---- both sides

function draw() {
  for (const button of document.querySelectorAll("[data-axis]")) button.setAttribute("aria-pressed", button.dataset.axis === shared.axis);
  const open = sides.filter(side => side.run), span = Math.max(...open.map(side => side.span()));
  // The names of the threads take room, and there are none before the first drawing; so they are drawn before room is measured.
  for (const side of open) side.names.replaceChildren(...side.run.lanes.map((l, i) => side.name(l, i)));
  shared.scale = shared.zoom * Math.min(...open.map(side => side.room())) / span;
  for (const side of open) side.draw(span);
}
function hide() { $("tip").hidden = true; }
function redraw() { hide(); if (chosen.problem !== null) draw(); }

const sides = [new Side(), new Side()];
$("sides").append(...sides.flatMap(side => side.parts));
$("list").addEventListener("keydown", event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...$("list").querySelectorAll("button")];
  if (!step) return;
  const next = all[all.indexOf(document.activeElement) + step];
  if (next) { next.focus(); next.click(); }
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-axis]")) button.onclick = () => { shared.axis = button.dataset.axis; redraw(); };
$("zoom").oninput = () => { shared.zoom = Number($("zoom").value); redraw(); };
addEventListener("resize", redraw);
$("method-0").append(...methods.map(m => node("option", { value: m, textContent: m })));
$("method-0").onchange = $("method-1").onchange = () => choose($("method-0").value, $("method-1").value);
$("which").append(...Object.keys(WHICH).map(name => node("option", { value: name, textContent: name })));
$("which").onchange = list;
if (data.runs.length) {
  const asked = location.hash.slice(1).split(",").map(i => data.runs[i]).filter(Boolean);
  const [first, second] = asked.length ? asked : [data.runs[data.open]];
  chosen.problem = first.number + "\n" + first.question;
  choose(label(first), second ? label(second) : "");
} else document.querySelector("main").textContent = "No runs to show.";
