// The shared space: from the integers of data.js to z-scores and unit vectors, and the search.
"use strict";

const mean = (v) => v.reduce((sum, x) => sum + x, 0) / v.length;
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const quantile = (v, q) => [...v].sort((a, b) => a - b)[Math.round(q * (v.length - 1))];

function correlation(a, b) {
  const [x, y] = [a, b].map((v) => { const m = mean(v); return v.map((e) => e - m); });
  return dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y));
}

const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer;

function unitVectors(base64, n) {
  const all = new Int8Array(bytes(base64)), d = all.length / n;
  return Array.from({ length: n }, (_, i) => {
    const v = Float32Array.from(all.subarray(i * d, (i + 1) * d)), length = Math.sqrt(dot(v, v));
    return v.map((x) => x / length);
  });
}

/** The data with arrays in place of base64, and each section's frame [x, y, width, height] in µm. */
function decoded(data) {
  const queries = unitVectors(data.queries, data.targets.length);
  data.targets.forEach((t, i) => {
    t.columns = t.genes.map((g) => data.genes.indexOf(g));
    t.query = queries[i];
  });
  for (const s of data.sections) {
    for (const k of ["measured", "predicted"]) s[k] = new Int16Array(bytes(s[k]));
    for (const k of ["images", "genes"]) s[k] = unitVectors(s[k], s.spots.length);
    const [xs, ys] = [0, 1].map((axis) => s.spots.map((place) => place[axis]));
    const [x, y] = [xs, ys].map((v) => Math.min(...v) - s.pitch);
    s.frame = [x, y, Math.max(...xs) + s.pitch - x, Math.max(...ys) + s.pitch - y];
  }
  return data;
}

/** At each spot of a section: z of a gene, or the mean z of a set's genes. */
function values(data, s, target, what) {
  if (what === "difference") {
    const measured = values(data, s, target, "measured");
    return values(data, s, target, "predicted").map((z, i) => z - measured[i]);
  }
  const width = data.genes.length, zOf = (i, c) => data.z_step * s[what][i * width + c];
  return s.spots.map((_, i) => mean(target.columns.map((c) => zOf(i, c))));
}

/**
 * Every patch that is searched, most similar first. The state names the query, which is the target
 * or the spot's "genes" or "image", and where to search. An image does not retrieve itself.
 */
function search(data, state) {
  const { by, scope, spot } = state, own = data.sections[spot.section], hits = [];
  const query = by === "target" ? data.targets[state.of].query
    : own[by === "genes" ? "genes" : "images"][spot.i];
  const home = by === "target" ? state.home : spot.section;
  data.sections.forEach((s, section) => {
    if ((scope === "this" && section !== home) || (scope === "others" && section === home)) return;
    s.images.forEach((image, i) => {
      const itself = by !== "target" && section === spot.section && i === spot.i;
      if (itself && by === "image") return;
      hits.push({ section, i, itself, similarity: dot(image, query) });
    });
  });
  return hits.sort((a, b) => b.similarity - a.similarity);
}
