"use strict";
// What the page shows at one step, and its controls.

const $ = (id) => document.getElementById(id);
const doc = JSON.parse($("data").textContent);
const shown = { t: 0, layer: 0, head: 0, order: "score" };
let runs = [], views = [], steps = 0, timer = null, addressTimer = null;
let predictionsDiffer = null, textsDiffer = null; // a step; a position

const text = (id) => doc.texts[id] ?? `<${id}>`;
const visibleText = (id) => text(id).replaceAll("\n", "⏎").replaceAll("\t", "⇥");
const shortText = (id) => visibleText(id).trim() || visibleText(id); // without the space before a word
const quote = (id) => `“${shortText(id)}”`;
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

function number(x, digits = 2) {
  if (Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "protected" : "−∞";
  if (x === 0 || Number.isInteger(x)) return String(x).replace("-", "−");
  return (Math.abs(x) < 1e-5 ? x.toExponential(digits - 1) : String(Number(x.toPrecision(digits)))).replace("-", "−");
}
const weight = (x) => (x ? number(x) : `< ${number(doc.precision.threshold, 1)}`);

function planeOf(run) {
  const planes = run.layers[shown.layer].planes;
  return planes[Math.min(shown.head, planes.length - 1)];
}

function held(plane, t) {
  let n = 0;
  for (let p = 0; p <= t; p++) n += plane.isHeld(t, p);
  return n;
}

// The step in one or two sentences.
function sentence(run, t) {
  if (shown.t >= run.T) return `The text of this operator ended after ${plural(run.T, "token")}.`;
  const plane = planeOf(run), p = plane.evicted(t), { size, operator, heads } = plane.layer;
  const where = `Layer ${shown.layer}${heads > 1 ? `, head ${shown.head}` : ""}`;
  const reads = `Token ${t}, ${quote(run.ids[t])}, is read. `;
  if (p < 0) {
    const why = size === null ? `${operator} evicts nothing` : `its size is ${size}, so nothing is evicted`;
    return `${reads}${where} now holds ${plural(held(plane, t), "token")}; ${why}.`;
  }
  const own = plane.at("evicted_score", t), next = plane.at("next_score", t);
  const what = p === t ? "the current token itself" : `token ${p}, ${quote(run.ids[p])}`;
  const rest = plane.visible(t).length;
  const why = plane.at("tied", t)
    ? `Its score ${number(own, 3)} is the lowest of ${rest}, and of equal scores the oldest token is evicted.`
    : `Its score ${number(own, 3)} is the lowest of ${rest}; the next lowest is ${next === Infinity ? "that of a protected row" : number(next, 3)}.`;
  return `${reads}${where} evicts ${what}. ${why}`;
}

function bar(share, kind = "") {
  const cell = document.createElement("td");
  cell.className = `bar ${kind}`;
  const line = document.createElement("span");
  line.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  cell.append(line);
  return cell;
}

function addCell(row, tag, content, extra = "") {
  const cell = document.createElement(tag);
  if (tag === "th") cell.scope = "row";
  cell.textContent = content;
  if (extra) {
    const mark = document.createElement("span");
    mark.className = "tag";
    mark.textContent = extra;
    cell.append(mark);
  }
  row.append(cell);
  return cell;
}

function drawText(view, run, t) {
  const plane = planeOf(run);
  for (let p = 0; p < run.T; p++) {
    const token = view.tokens[p], isNow = p === t && shown.t < run.T;
    let state = p > t ? "ahead" : p === plane.evicted(t) ? "just" : plane.isHeld(t, p) ? "held" : "gone";
    const name = `tok ${state}${isNow ? " current" : ""}${p === textsDiffer ? " differs" : ""}`;
    if (token.className !== name) token.className = name;
    if (state === "held") token.style.setProperty("--w", logShare(plane.weight(t, p), 1));
  }
  const box = view.text, now = view.tokens[t];
  const top = now.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top > box.scrollTop + box.clientHeight - 40) box.scrollTop = top - box.clientHeight / 2;
}

function drawRows(view, run, t) {
  const plane = planeOf(run), gone = plane.evicted(t), rows = plane.visible(t);
  if (shown.order === "score" && plane.how.kind !== "none")
    rows.sort((a, b) => (b === gone) - (a === gone) || plane.score(t, a) - plane.score(t, b) || a - b);
  view.order.value = shown.order;
  const next = plane.at("next_score", t), limit = gone < 0 ? 0 : plane.scoreShare(plane.score(t, gone));
  const least = Math.min(...rows.filter((p) => p !== gone).map((p) => plane.score(t, p)));
  const lowest = gone < 0 ? [] : rows.filter((p) => p !== gone && plane.score(t, p) === least); // its exact score is known if alone
  view.rows.replaceChildren(...rows.map((p) => {
    const row = document.createElement("tr"), score = plane.score(t, p), w = plane.weight(t, p);
    row.dataset.position = p;
    addCell(row, "td", p);
    addCell(row, "th", shortText(run.ids[p]), p === gone ? "evicted" : p === t ? "current" : "");
    const first = bar(plane.scoreShare(score));
    first.prepend(lowest.length === 1 && p === lowest[0] ? number(next, 3) : number(score, p === gone ? 3 : 2));
    const second = bar(logShare(w, 1), "attention");
    second.prepend(weight(w));
    if (plane.how.kind === "none") first.replaceChildren("–");
    row.append(first, second);
    if (p === gone) row.className = "out";
    else if (gone >= 0 && limit > 0) first.classList.add("limit");
    first.style.setProperty("--limit", limit);
    return row;
  }));
  const heads = plane.layer.heads > 1 ? `head ${shown.head} of layer ${shown.layer}` : `layer ${shown.layer}`;
  const mean = doc.query_heads > 1 ? `, mean over ${doc.query_heads / plane.layer.heads} query heads` : "";
  const scale = plane.how.kind === "linear" ? "Bars of attention weights are" : "Bars are";
  const line = limit > 0 ? " The line is the score of the evicted row." : "";
  view.caption.textContent = `The ${plural(rows.length, "row")} that token ${t} attends to in ${heads}${mean}. ${scale} on a log scale.${line}`;
  view.scroll.setAttribute("aria-label", `Scores and attention of ${run.operator}`);
}

function drawPredictions(view, run, t) {
  const next = run.ids[t + 1], rows = [];
  const add = (id, p, note) => {
    const row = document.createElement("tr");
    addCell(row, "th", shortText(id), note);
    const cell = bar(p);
    cell.prepend(number(p, 3));
    row.append(cell);
    if (note) row.className = "mark";
    rows.push(row);
  };
  const note = t + 1 < doc.prompt_tokens ? "next in the prompt" : "generated";
  let found = false;
  for (let i = 0; i < run.top; i++) {
    const id = run.top_ids[t * run.top + i];
    found ||= id === next;
    add(id, run.top_probabilities[t * run.top + i], id === next ? note : "");
  }
  if (next !== undefined && !found) add(next, run.next_probability[t], note);
  view.predictions.replaceChildren(...rows);
  view.predicted.textContent = `The ${run.top} most probable tokens after token ${t}.`;
}

function drawMap(view, run, t) {
  const canvas = view.map, L = run.layers.length, style = getComputedStyle(document.documentElement);
  const width = canvas.clientWidth, unit = Math.max(4, Math.min(9, Math.round(260 / L))), ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = unit * L * ratio;
  canvas.style.height = `${unit * L}px`;
  const ink = canvas.getContext("2d"), w = width / run.T;
  const [just, heldColour, gone, line] = ["--just", "--held", "--gone", "--ink"].map((name) => style.getPropertyValue(name).trim());
  ink.scale(ratio, ratio);
  for (let l = 0; l < L; l++) {
    const planes = run.layers[l].planes;
    ink.fillStyle = gone;
    ink.fillRect(0, l * unit, (t + 1) * w, unit - 1);
    for (let p = 0; p <= t; p++) {
      let n = 0, now = false;
      for (const plane of planes) {
        n += plane.isHeld(t, p);
        now ||= plane.evicted(t) === p;
      }
      if (!now && !n) continue;
      ink.clearRect(p * w, l * unit, w, unit - 1);
      ink.fillStyle = now ? just : `rgba(${heldColour}, ${0.25 + (0.6 * n) / planes.length})`;
      ink.fillRect(p * w, l * unit, Math.max(now ? 3 : 1, w - (w > 3 ? 1 : 0)), unit - 1);
    }
  }
  ink.strokeStyle = line;
  ink.lineWidth = 1.5;
  ink.strokeRect(0.75, shown.layer * unit - 0.5, width - 1.5, unit);
  const evicting = run.layers.filter((layer) => layer.planes.some((plane) => plane.evicted(t) >= 0)).length;
  canvas.setAttribute("aria-label", `${L} layers by ${run.T} positions. At step ${t}, ${plural(evicting, "layer")} of ${L} evict a token.`);
}

function drawTimeline() {
  const canvas = $("timeline"), ratio = devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = width * ratio;
  canvas.height = 10 * ratio;
  const ink = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  ink.scale(ratio, ratio);
  const x = (t) => 8 + (t / Math.max(1, steps - 1)) * (width - 16);
  ink.fillStyle = style.getPropertyValue("--line");
  ink.fillRect(8, 4, width - 16, 2);
  ink.fillStyle = style.getPropertyValue("--soft");
  ink.fillRect(x(doc.prompt_tokens - 1) - 1, 0, 2, 10);
  ink.fillStyle = style.getPropertyValue("--just");
  for (const t of differences()) ink.fillRect(x(t) - 1, 1, 3, 8);
}

// Steps at which the runs that are shown predict different tokens after the same text.
function differences() {
  if (views.length < 2) return [];
  const [a, b] = views.map((view) => view.run), found = [];
  for (let t = 0; t < Math.min(a.T, b.T) && a.ids[t] === b.ids[t]; t++)
    if (a.top_ids[t * a.top] !== b.top_ids[t * b.top]) found.push(t);
  return found;
}

function writeAddress() {
  try { history.replaceState(null, "", `#step=${shown.t}&layer=${shown.layer}&head=${shown.head}`); } catch { /* some viewers */ }
}

function draw() {
  const sentences = [];
  for (const view of views) {
    const { run } = view, t = Math.min(shown.t, run.T - 1), now = sentence(run, t);
    view.now.textContent = now;
    drawText(view, run, t);
    drawRows(view, run, t);
    drawPredictions(view, run, t);
    drawMap(view, run, t);
    sentences.push(`${run.operator}: ${now}`);
  }
  $("count").textContent = `step ${shown.t} of ${steps - 1}`;
  $("step").value = shown.t;
  $("step").setAttribute("aria-valuetext", `step ${shown.t} of ${steps - 1}`);
  $("layer").value = shown.layer;
  $("head").value = shown.head;
  const heads = Math.max(...views.map((view) => view.run.layers[shown.layer].heads));
  $("head-label").hidden = heads < 2;
  if (!timer) $("announcement").textContent = sentences.join(" ");
  clearTimeout(addressTimer); // browsers limit how often the address may change
  addressTimer = setTimeout(writeAddress, 400);
}
