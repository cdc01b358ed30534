// What is chosen in the explorer, and what the reader does to choose it.
"use strict";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The state that the address names. What it leaves out, or misspells, is the default. */
function addressed() {
  const wanted = new URLSearchParams(location.hash.slice(1)), state = {};
  const place = (list, name) => list.findIndex((entry) => entry.name === name);
  for (const name of CHOICES) {
    const known = [...choice(name)].map((input) => input.value);
    state[name] = known.includes(wanted.get(name)) ? wanted.get(name) : known[0];
  }
  state.of = Math.max(place(D.targets, wanted.get("of")), 0);
  state.section = place(D.sections, wanted.get("section"));
  if (state.section < 0) state.section = Math.max(D.sections.findIndex((s) => s.held_out), 0);
  state.home = state.section;
  const z = values(D, D.sections[state.section], D.targets[state.of], "measured");
  const i = wanted.get("spot") - 1 in z ? wanted.get("spot") - 1 : z.indexOf(Math.max(...z));
  return { ...state, spot: { section: state.section, i }, cursor: i };
}

/** Takes a spot of the section on the map as the query. */
function queryWith(i) {
  const by = S.by === "target" ? "genes" : S.by;
  Object.assign(S, { cursor: i, home: S.section, spot: { section: S.section, i }, by });
  render();
}

/** The spot under the pointer; undefined between spots. */
function under(event) {
  const { x, y } = new DOMPoint(event.clientX, event.clientY)
    .matrixTransform($("map").getScreenCTM().inverse());
  const far = section().spots.map(([a, b]) => Math.hypot(a - x, b - y));
  const i = far.indexOf(Math.min(...far));
  return far[i] < 0.7 * section().pitch ? i : undefined;
}

/** Moves the cursor to the nearest spot in a direction; a way aside counts double. */
function step([dx, dy]) {
  const [x, y] = section().spots[S.cursor];
  const far = section().spots.map(([a, b]) => {
    const ahead = (a - x) * dx + (b - y) * dy, aside = Math.abs((a - x) * dy + (b - y) * dx);
    return ahead > aside / 2 ? ahead + 2 * aside : Infinity;
  });
  if (Math.min(...far) < Infinity) S.cursor = far.indexOf(Math.min(...far));
}

function press(event) {
  if (event.key in ARROWS) step(ARROWS[event.key]);
  else if (event.key === "Home") S.cursor = 0;
  else if (event.key === "End") S.cursor = section().spots.length - 1;
  else if (event.key === "Enter" || event.key === " ") queryWith(S.cursor);
  else if (event.key !== "Escape") return;
  event.preventDefault();
  drawCursor(event.key !== "Escape");
}

function listen() {
  const map = $("map");
  map.onclick = (event) => { if (under(event) !== undefined) queryWith(under(event)); };
  map.onpointermove = (event) => {
    const i = under(event);
    if (i !== undefined) S.cursor = i;
    drawCursor(i !== undefined);
  };
  map.onpointerleave = map.onblur = () => drawCursor(false);
  map.onfocus = () => drawCursor(map.matches(":focus-visible"));
  map.onkeydown = press;
  $("of").onchange = () => { S.of = +$("of").value; render(); };
  $("opacity").oninput = () => map.style.setProperty("--opacity", $("opacity").value);
  $("controls").onchange = (event) => {
    const { name, value } = event.target;
    if (CHOICES.includes(name)) S[name] = value;
    else if (name === "section") Object.assign(S, { section: +value, home: +value, cursor: 0 });
    else return;
    render();
  };
  addEventListener("hashchange", () => { S = addressed(); render(); });
}

function build() {
  const sheets = D.sections.map((s, k) => `.sheet-${k} { background-image: url(${s.sheet}); }`);
  document.head.append(make("style", {}, sheets.join("\n")));
  for (const kind of new Set(D.targets.map((t) => t.kind))) {
    const options = D.targets.map((t, i) => make("option", { value: i }, t.name));
    const label = kind === "gene sets" ? "Gene sets" : `Genes${kind && `: ${kind}`}`;
    const alike = options.filter((_, i) => D.targets[i].kind === kind);
    $("of").append(make("optgroup", { label }, ...alike));
  }
  D.sections.forEach((s, k) => {
    const frame = { viewBox: s.frame.join(" "), "aria-hidden": true };
    const about = make("span", { class: "about" }, make("b", {}, s.name), tag(s),
      make("span", { class: "r" }), make("span", { class: "gauge" }, make("i")));
    s.card = make("label", { class: "card" },
      make("input", { type: "radio", name: "section", value: k }),
      make("span", { class: "frame" }, make("svg", frame, tissue(s), make("g")), about));
    $("cards").append(s.card);
  });
}

/** In the book: its theme, and the height that the frame needs (see book/explorer.md). */
function embed() {
  const theme = (name) => {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
  };
  theme(new URLSearchParams(location.search).get("theme"));
  if (parent === window) return;
  document.body.classList.add("embedded");
  addEventListener("message", (event) => { if (event.source === parent) theme(event.data.theme); });
  const sendHeight = () => parent.postMessage({ height: document.body.offsetHeight }, "*");
  new ResizeObserver(sendHeight).observe(document.body);
}

embed();
if (window.EXPLORER) {
  D = decoded(window.EXPLORER);
  S = addressed();
  build();
  listen();
  render();
}
$("absent").hidden = Boolean(window.EXPLORER);
