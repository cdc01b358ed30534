// How the explorer is drawn: section cards, the map and its scale, the query, the results.
"use strict";

const TOP = 12; // patches shown
const VIRIDIS = "#440154 #482878 #3e4989 #31688e #26828e #1f9e89 #35b779 #6ece58 #b5de2b #fde725";
// Errors, as in the chapters: orange where the prediction is too high, purple where too low.
const ERRORS = "#2d004b #542788 #8073ac #b2abd2 #d8daeb #f7f7f7 #fee0b6 #fdb863 #e08214 #b35806 "
  + "#7f3b08";
const DRAWN = ["svg", "image", "circle", "rect", "line", "path", "text", "g"];

let D, S; // the data; and the state, in which sections, spots and targets are places in their lists
let listed = ""; // the query whose results are in the list
const CHOICES = ["show", "by", "scope"]; // names of the radio buttons, and of what they set
const choice = (name) => $("controls").elements[name];
const $ = (id) => document.getElementById(id);
const target = () => D.targets[S.of];
const section = () => D.sections[S.section];
const z = (s, what) => values(D, s, target(), what);
const number = (v, digits) => (Number.isNaN(v) ? "–" // r of what does not vary
  : v.toFixed(digits).replace(/^-(0\.0+)$/, "$1").replace("-", "−"));
const signed = (v) => number(v, 1).replace(/^(?=\d)/, v >= 0.05 ? "+" : "");
const listing = (words) => new Intl.ListFormat("en-GB").format(words);

/** An element, in SVG's namespace where it is drawn, with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The colour at t, 0 to 1, of a ramp. */
function colour(ramp, t) {
  const stops = ramp.split(" "), place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  const mixed = [1, 3, 5].map((k) => {
    const [a, b] = [stops[i], stops[i + 1]].map((hex) => parseInt(hex.slice(k, k + 2), 16));
    return Math.round(a + (place - i) * (b - a));
  });
  return `rgb(${mixed})`;
}

/** The ramp and the limits of a section's colours; measured and predicted share theirs. */
function scale(s, what) {
  if (what === "difference") {
    const most = quantile(z(s, what).map(Math.abs), 0.98);
    return { ramp: ERRORS, low: -most, high: most };
  }
  const [low, high] = [0.02, 0.98].map((q) => quantile(z(s, "measured"), q));
  return { ramp: VIRIDIS, low, high };
}
const part = (v, low, high) => (v - low) / (high - low || 1); // a gene may be absent, and all 0
const shade = ({ ramp, low, high }, v) => colour(ramp, part(v, low, high));

// ---- pieces -------------------------------------------------------------------------------------
/** The image of a patch, taken from its section's sheet. */
function patch(k, i) {
  const across = D.columns, down = Math.ceil(D.sections[k].spots.length / across);
  const x = (i % across) / (across - 1), y = Math.floor(i / across) / Math.max(down - 1, 1);
  const style = `background-size: ${100 * across}% ${100 * down}%; `
    + `background-position: ${100 * x}% ${100 * y}%`;
  return make("span", { class: `patch sheet-${k}`, style });
}

/** The outline of a patch on the map, and the light one beneath it. */
function outline(s, i, name) {
  const edge = D.patch_um, [x, y] = s.spots[i].map((v) => v - edge / 2);
  return ["halo", name].map((kind) =>
    make("rect", { class: kind, x, y, width: edge, height: edge, rx: 24 }));
}

/** A label of a section: whether the model has seen it. */
const tag = (s) => make("span", { class: s.held_out ? "tag out" : "tag" }, s.role);
const tissue = (s) => make("image", { href: s.tissue, width: s.um[0], height: s.um[1] });

function scaleBar(s) {
  const [x, y, w, h] = s.frame.map((v, k) => v + (k < 2 ? 0.04 * s.frame[k + 2] : 0));
  const um = [50, 100, 200, 500, 1000, 2000, 5000].filter((l) => l < 0.3 * w).pop() || 20;
  const low = y + 0.92 * h, words = um < 1000 ? `${um} µm` : `${um / 1000} mm`;
  return make("g", { class: "scale", "aria-hidden": true },
    make("rect", { x, y: low, width: um, height: 0.007 * h }),
    make("text", { x, y: low - 0.014 * h }, words));
}

// ---- drawing ------------------------------------------------------------------------------------
function drawCards(hits) {
  D.sections.forEach((s, k) => {
    const r = correlation(z(s, "measured"), z(s, "predicted")), wide = s.frame[2];
    const dots = hits.filter((h) => h.section === k).map((h) => make("circle", {
      cx: s.spots[h.i][0], cy: s.spots[h.i][1], r: 0.034 * wide, "stroke-width": 0.014 * wide }));
    s.card.querySelector("g").replaceChildren(...dots);
    s.card.querySelector(".r").replaceChildren(`r = ${number(r, 2)}`);
    s.card.querySelector(".gauge i").style.width = `${100 * Math.max(r || 0, 0)}%`;
    s.card.querySelector("input").checked = k === S.section;
  });
  const [seen, held] = [false, true].map((out) =>
    listing(D.sections.filter((s) => s.held_out === out).map((s) => s.name)));
  $("honest").textContent = `r: predicted against measured ${target().name} over a section’s spots. `
    + `The model was trained on ${seen}, so r is optimistic there; it has not seen ${held}. `
    + "Dots: retrieved patches.";
}

function drawMap(hits) {
  const s = section(), shown = z(s, S.show), colours = scale(s, S.show), name = target().name;
  const [measured, predicted] = ["measured", "predicted"].map((what) => z(s, what));
  const here = hits.map((h, k) => ({ ...h, rank: k + 1 })).filter((h) => h.section === S.section);
  const queries = S.by !== "target" && S.spot.section === S.section ? [S.spot.i] : [];
  if ($("map").section !== s) { // kept otherwise, so that colours fade from one to the other
    $("map").section = s;
    $("map").setAttribute("viewBox", s.frame.join(" "));
    $("map").setAttribute("aria-label", `Spots of ${s.name}`);
    $("map").style.fontSize = `${0.033 * s.frame[2]}px`; // µm, as all that is drawn here
    const spots = s.spots.map(([cx, cy], i) => make("circle", { id: `spot-${i}`, class: "spot",
      role: "option", cx, cy, r: 0.37 * s.pitch }));
    $("map").replaceChildren(tissue(s), ...spots, make("g", { id: "marks", "aria-hidden": true }),
      make("g", { id: "cursor", "aria-hidden": true }), scaleBar(s));
  }
  s.spots.forEach((_, i) => {
    $(`spot-${i}`).setAttribute("fill", shade(colours, shown[i]));
    $(`spot-${i}`).setAttribute("aria-selected", queries.includes(i));
    $(`spot-${i}`).setAttribute("aria-label", `Spot ${i + 1}, ${name} measured `
      + `${signed(measured[i])}, predicted ${signed(predicted[i])}`);
  });
  const outlines = here.map((h) => outline(s, h.i, "hit"));
  const marks = [...outlines, ...queries.map((i) => outline(s, i, "query"))];
  const ranks = here.map((h) =>
    make("text", { x: s.spots[h.i][0], y: s.spots[h.i][1], dy: "0.36em" }, h.rank));
  $("marks").replaceChildren(...marks.map((m) => m[0]), ...marks.map((m) => m[1]), ...ranks);
  const unit = S.show === "difference" ? "predicted − measured" : S.show;
  $("where").replaceChildren(`${s.name}: ${name}, ${unit} `, tag(s));
  drawScale(colours, `z of ${name}, ${unit}`);
  drawScatter(s, measured, predicted);
}

function drawScale({ ramp, low, high }, words) {
  $("unit").textContent = words;
  $("ramp").style.background = `linear-gradient(to right, ${ramp.split(" ")})`;
  const ticks = [low, (low + high) / 2, high];
  $("ticks").replaceChildren(...ticks.map((v) => make("span", {}, signed(v))));
  const of = target().genes.length > 1 ? `${target().name}: mean of ${listing(target().genes)}. ` : "";
  $("explain").textContent = of + {
    measured: `z: ${D.unit}.`,
    predicted: "From the image alone; colours as for the measured values. An unsure prediction "
      + "stays near the mean.",
    difference: "Orange: the prediction is too high. Purple: too low.",
  }[S.show];
}

function drawScatter(s, x, y) {
  const all = [...x, ...y], low = Math.min(...all), high = Math.max(...all);
  const length = (v) => 142 * part(v, low, high);
  const dots = x.map((v, i) =>
    make("circle", { cx: 32 + length(v), cy: 148 - length(y[i]), r: 2.2 }));
  const text = (words, place) => make("text", place, words), r = number(correlation(x, y), 2);
  if (S.by !== "target" && S.spot.section === S.section) {
    dots[S.spot.i].setAttribute("class", "query");
    dots.push(...dots.splice(S.spot.i, 1)); // on top of the others
  }
  $("scatter").setAttribute("aria-label",
    `Predicted against measured z of ${target().name} at the spots of ${s.name}: r = ${r}`);
  $("scatter").replaceChildren(make("path", { class: "axis", d: "M32 6V148H174" }),
    make("path", { class: "same", d: "M32 148L174 6" }), ...dots,
    text(`r = ${r}`, { x: 38, y: 16, class: "r" }), text(signed(low), { x: 32, y: 161 }),
    text(signed(high), { x: 174, y: 161, "text-anchor": "end" }),
    text("measured z", { x: 103, y: 174, "text-anchor": "middle" }),
    text("predicted z", { "text-anchor": "middle", transform: "translate(22 77) rotate(-90)" }));
}

/** The ring of the cursor and the card beside it, which opens towards the middle of the map. */
function drawCursor(visible) {
  const s = section(), i = S.cursor, [x, y, w, h] = s.frame;
  const lines = ["measured", "predicted"].map((what) => `${what} ${signed(z(s, what)[i])}`);
  const left = (s.spots[i][0] - x) / w, top = (s.spots[i][1] - y) / h, gap = (0.7 * s.pitch) / w;
  $("map").setAttribute("aria-activedescendant", `spot-${i}`);
  $("cursor").replaceChildren(...(visible ? outline(s, i, "cursor") : []));
  $("tip").hidden = !visible;
  const across = left > 0.5 ? `right: ${100 * (1 - left + gap)}%` : `left: ${100 * (left + gap)}%`;
  $("tip").style = `${across}; ${top > 0.5 ? `bottom: ${100 * (1 - top)}%` : `top: ${100 * top}%`}`;
  $("tip").replaceChildren(patch(S.section, i), make("span", {}, make("b", {}, `Spot ${i + 1}`),
    ...[target().name, ...lines].map((words) => make("span", { class: "line" }, words))));
}

function drawQuery(all) {
  const t = target(), s = D.sections[S.spot.section], own = all.findIndex((hit) => hit.itself) + 1;
  const title = S.by === "target" ? t.name : `${s.name}, spot ${S.spot.i + 1}`;
  const words = {
    target: (t.genes.length > 1 ? `${listing(t.genes)} stand` : "It stands")
      + " at z = 3, every other gene at its mean. This profile is the query.",
    genes: "The profile of all its measured genes is the query."
      + (own ? ` Its own patch is number ${own} of ${all.length}.` : ""),
    image: "Its image is the query. No gene is used.",
  }[S.by];
  $("query").replaceChildren(...(S.by === "target" ? [] : [patch(S.spot.section, S.spot.i)]),
    make("p", {}, make("b", {}, title), make("br"), words));
}

function drawResults(all, hits) {
  const measured = D.sections.map((s) => z(s, "measured")), of = (h) => measured[h.section][h.i];
  const every = all.map(of), low = Math.min(...every), high = Math.max(...every);
  const best = [...every].sort((a, b) => b - a).slice(0, hits.length), name = target().name;
  $("summary").replaceChildren(`Measured z of ${name}: `,
    make("b", {}, `${signed(mean(hits.map(of)))} in the ${hits.length} retrieved`),
    `, ${signed(mean(every))} in all ${every.length} searched, `
    + `${signed(mean(best))} in the highest ${best.length}.`);
  const tick = (h, bold) => {
    const x = 400 * part(of(h), low, high);
    return make("line", { class: bold ? "hit" : "", x1: x, x2: x, y1: bold ? 2 : 14, y2: 34 });
  };
  $("rug").replaceChildren(...all.map((h) => tick(h)), ...hits.map((h) => tick(h, true)));
  $("rug").setAttribute("aria-label", `Measured z of ${name}, a line for each patch; bold: retrieved`);
  $("rug-ticks").replaceChildren(...[low, high].map((v) => make("span", {}, signed(v))));
  const colours = D.sections.map((s) => scale(s, "measured"));
  $("results").replaceChildren(...hits.map((hit, rank) => {
    const s = D.sections[hit.section], line = (...parts) => make("span", { class: "line" }, ...parts);
    const chip = make("i", { class: "chip" });
    chip.style.background = shade(colours[hit.section], of(hit));
    const button = make("button", { type: "button" }, patch(hit.section, hit.i),
      line(make("b", {}, rank + 1), make("span", { class: s.held_out ? "from out" : "from" },
        hit.itself ? "its own" : s.name)),
      line("similarity", make("span", {}, number(hit.similarity, 2))),
      line("measured", make("span", {}, chip, signed(of(hit)))),
      make("span", { class: "unseen" }, "show on the map"));
    button.onclick = () => {
      Object.assign(S, { section: hit.section, cursor: hit.i });
      render(true);
      $("map").scrollIntoView({ block: "nearest" });
    };
    return make("li", {}, button);
  }));
}

function render(cursor = false) {
  const all = search(D, S), hits = all.slice(0, TOP), { by, scope, home, spot } = S;
  for (const name of CHOICES) choice(name).value = S[name];
  $("of").value = S.of;
  drawCards(hits);
  drawMap(hits);
  drawCursor(cursor);
  const query = [target().name, by, scope, home, spot.section, spot.i].join();
  if (query !== listed) { // left alone otherwise, so that a result that is pressed keeps the focus
    drawQuery(all);
    drawResults(all, hits);
    listed = query;
  }
  const address = new URLSearchParams({ section: section().name, of: target().name,
    show: S.show, by, scope, spot: spot.i + 1 });
  history.replaceState(null, "", `#${address}`);
  $("live").textContent = `${section().name}, ${section().role}. Query: `
    + `${$("query").innerText.trim().replace(/\s*\n\s*/, ": ")} ${$("summary").textContent}`;
}
