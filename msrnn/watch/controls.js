"use strict";
// Setup of the page: reading of the data, and what buttons and keys do.

function show(change) {
  Object.assign(shown, change);
  shown.t = Math.max(0, Math.min(steps - 1, shown.t));
  shown.layer = Math.max(0, Math.min(runs[0].layers.length - 1, shown.layer));
  draw();
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => (shown.t < steps - 1 ? show({ t: shown.t + 1 }) : play(false)), 600) : null;
  $("play").textContent = on ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(on));
  if (!on) draw(); // says the step where it stopped
}

function togglePlay() {
  if (!timer && shown.t === steps - 1) shown.t = 0;
  play(!timer);
}

function goToDifference() {
  if (textsDiffer !== null) show({ t: textsDiffer - 1 });
  else if (predictionsDiffer !== null) show({ t: predictionsDiffer });
}

function onKey(event) {
  const tag = event.target.tagName, far = event.shiftKey ? 10 : 1;
  if (event.altKey || event.ctrlKey || event.metaKey || tag === "SELECT") return;
  const inSlider = tag === "INPUT", onButton = tag === "BUTTON" || tag === "SUMMARY";
  const actions = {
    "[": () => show({ layer: shown.layer - 1 }),
    "]": () => show({ layer: shown.layer + 1 }),
    d: () => goToDifference(),
  };
  if (!inSlider) {
    actions.ArrowLeft = () => show({ t: shown.t - far });
    actions.ArrowRight = () => show({ t: shown.t + far });
    actions.Home = () => show({ t: 0 });
    actions.End = () => show({ t: steps - 1 });
  }
  if (!onButton) actions[" "] = togglePlay;
  const action = actions[event.key] ?? actions[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
}

function options(select, n, label) {
  select.replaceChildren(...Array.from({ length: n }, (_, i) => new Option(label(i), i)));
}

function newView(index) {
  const part = $("run").content.firstElementChild.cloneNode(true), find = (name) => part.querySelector(name);
  const view = {
    now: find(".now"), text: find(".text"), rows: find(".rows tbody"), caption: find(".rows caption"), map: find(".map"),
    predictions: find(".predictions tbody"), predicted: find(".predictions caption"), scroll: find(".scroll"),
    order: find(".order-by"),
  };
  if (runs.length > 2) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", `Operator ${index + 1}`);
    options(select, runs.length, (i) => runs[i].operator);
    select.value = index;
    select.addEventListener("change", () => { setRun(view, Number(select.value)); compare(); draw(); });
    find("h2").append(select);
  } else find("h2").textContent = runs[index].operator;
  part.setAttribute("aria-label", `Operator ${runs[index].operator}`);
  view.order.addEventListener("change", () => show({ order: view.order.value }));
  view.map.addEventListener("click", (event) =>
    show({ layer: Math.floor((event.offsetY / view.map.clientHeight) * view.run.layers.length) }));
  view.text.addEventListener("click", (event) => event.target.dataset.p && show({ t: Number(event.target.dataset.p) }));
  $("runs").append(part);
  setRun(view, index);
  return view;
}

function setRun(view, index) {
  view.index = index;
  view.run = runs[index];
  view.tokens = view.run.ids.map((id, p) => {
    const token = document.createElement("span");
    token.dataset.p = p;
    token.textContent = text(id).replaceAll("\n", "⏎\n");
    return token;
  });
  view.text.replaceChildren(...view.tokens);
}

function comparison([a, b]) {
  if (predictionsDiffer === null) return `${a.operator} and ${b.operator} predict the same token at every step.`;
  const t = predictionsDiffer, top = (run) => quote(run.top_ids[t * run.top]);
  const first = `After the same text, the most probable next tokens differ first at step ${t}, ${quote(a.ids[t])}: ${top(a)} with `
    + `${a.operator}, ${top(b)} with ${b.operator}. The marks below the slider show each such step.`;
  if (textsDiffer === null) return first;
  const p = textsDiffer, token = (run) => (p < run.T ? quote(run.ids[p]) : "the end of the text");
  return `The generated texts differ from token ${p} on: ${token(a)} with ${a.operator}, ${token(b)} with ${b.operator}. ${first}`;
}

// Where the two operators that are shown predict different tokens first.
function compare() {
  const [one, other] = views.map((view) => view.index);
  predictionsDiffer = views.length < 2 ? null : doc.predictions_differ[one][other];
  textsDiffer = views.length < 2 ? null : doc.texts_differ[one][other];
  $("predictions-differ").hidden = predictionsDiffer === null;
  $("texts-differ").hidden = textsDiffer === null;
  steps = Math.max(...views.map((view) => view.run.T));
  $("step").max = steps - 1;
  $("divergence").textContent = views.length < 2 ? "" : comparison(views.map((view) => view.run));
  drawTimeline();
}

// The number of a layer, with its operators if the layers differ.
function layerName(l) {
  const differ = runs.some((run) => run.layers.some((layer) => layer.operator !== run.layers[0].operator));
  return differ ? `${l} (${[...new Set(runs.map((run) => run.layers[l].operator))].join(", ")})` : String(l);
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    $("about").textContent = "This browser cannot read compressed data. Firefox 113, Chrome 80, Safari 16.4 and later can.";
    return;
  }
  runs = await Promise.all(doc.runs.map((fields) => readRun(fields, doc)));
  const layers = runs[0].layers.length;
  const added = Math.max(...runs.map((run) => run.T)) - doc.prompt_tokens, most = runs.length > 1 ? "up to " : "";
  $("about").textContent = `${doc.model}: ${plural(layers, "layer")}, ${plural(doc.prompt_tokens, "prompt token")}`
    + (added ? `, ${most}${added} generated greedily${most ? " by each operator" : ""}.` : ".");
  const relative = (100 * (2 ** (0.5 / doc.precision.steps) - 1)).toPrecision(2);
  $("precision").textContent = `Attention weights below ${number(doc.precision.threshold)} are shown as “< …”. Other weights and scores `
    + `are stored in 8 bits, weights with an error of at most ${relative} %. Scores of evicted rows are exact to 4 digits.`;
  options($("layer"), layers, layerName);
  options($("head"), Math.max(...runs.flatMap((run) => run.layers.map((layer) => layer.heads))), String);
  views = runs.slice(0, 2).map((_, i) => newView(i));
  compare();
  const listen = (id, type, action) => $(id).addEventListener(type, action);
  listen("back", "click", () => show({ t: shown.t - 1 }));
  listen("next", "click", () => show({ t: shown.t + 1 }));
  listen("play", "click", togglePlay);
  listen("predictions-differ", "click", () => show({ t: predictionsDiffer }));
  listen("texts-differ", "click", () => show({ t: textsDiffer - 1 }));
  listen("step", "input", () => show({ t: Number($("step").value) }));
  listen("layer", "change", () => show({ layer: Number($("layer").value) }));
  listen("head", "change", () => show({ head: Number($("head").value) }));
  document.addEventListener("keydown", onKey);
  const again = () => { drawTimeline(); draw(); };
  addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  const place = new URLSearchParams(location.hash.slice(1)), whole = (name) => Number.parseInt(place.get(name) ?? "0", 10) || 0;
  show({ t: whole("step"), layer: whole("layer"), head: whole("head") });
}

start();
