"use strict";
// Reading of the data (docs/watch.md). The numbers are those of msrnn/watch/read.py.

const DTYPES = { uint8: Uint8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array };

async function unpack(fields) {
  const bytes = Uint8Array.from(atob(fields.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const x = new DTYPES[fields.dtype](await new Response(stream).arrayBuffer());
  if (fields.delta) for (let i = 1; i < x.length; i++) x[i] = (x[i] + x[i - 1]) & 255;
  return x;
}

// One layer, or one head if the operator of the layer decides for each head. `last[p]` is the last step that attends to position
// p; T if H holds it at the end. Codes are stored position after position, for each of them step after step.
class Plane {
  constructor(run, index, layer, how, weightStart, scoreStart) {
    Object.assign(this, { run, index, layer, how, weightStart, scoreStart });
    const T = run.T;
    this.last = new Int32Array(T).fill(T);
    for (let t = 0; t < T; t++) if (this.evicted(t) >= 0) this.last[this.evicted(t)] = t;
    this.offset = new Int32Array(T + 1);
    for (let p = 0; p < T; p++) this.offset[p + 1] = this.offset[p] + Math.min(this.last[p], T - 1) - p + 1;
  }
  get size() { return this.offset[this.run.T]; }
  evicted(t) { return this.run.evicted[this.index * this.run.T + t]; }
  isVisible(t, p) { return p <= t && t <= this.last[p]; }
  isHeld(t, p) { return p <= t && t < this.last[p]; }
  at(name, t) { return this.run[name][this.index * this.run.T + t]; }
  weight(t, p) {
    const code = this.run.weights[this.weightStart + this.offset[p] + t - p];
    return code ? 2 ** ((code - 255) / this.run.precision.steps) : 0;
  }
  score(t, p) {
    if (this.how.kind === "none") return NaN;
    if (p === this.evicted(t)) return this.at("evicted_score", t);
    if (this.how.kind === "attention") return this.weight(t, p);
    const code = this.run.scores[this.scoreStart + this.offset[p] + t - p];
    if (code === 255) return Infinity;
    if (code === 253) return -Infinity;
    if (this.how.kind === "linear") return this.how.low + code * this.how.unit;
    return code ? this.how.high * 2 ** ((code - 252) / this.run.precision.steps) : 0;
  }
  visible(t) {
    const positions = [];
    for (let p = 0; p <= t; p++) if (this.isVisible(t, p)) positions.push(p);
    return positions;
  }
  // Share of the bar of a score, from 0 to 1.
  scoreShare(score) {
    if (score === Infinity) return 1;
    if (this.how.kind === "linear") return this.how.unit ? (score - this.how.low) / (252 * this.how.unit) : 0.5;
    return logShare(score, this.how.kind === "log" ? this.how.high : 1);
  }
}

// A log scale of 16 factors of two below `high`.
function logShare(x, high) { return x > 0 ? Math.max(0, 1 + Math.log2(x / high) / 16) : 0; }

async function readRun(fields, document) {
  const run = { operator: fields.operator, ids: fields.ids, T: fields.ids.length, layers: [], precision: document.precision };
  const names = Object.keys(fields).filter((name) => fields[name].data !== undefined);
  await Promise.all(names.map(async (name) => { run[name] = await unpack(fields[name]); }));
  run.top = fields.top_ids.shape[1];
  let index = 0, weightStart = 0, scoreStart = 0;
  for (const layer of fields.layers) {
    const planes = [];
    for (let h = 0; h < layer.heads; h++, index++) {
      const plane = new Plane(run, index, layer, fields.planes[index], weightStart, scoreStart);
      weightStart += plane.size;
      if (plane.how.kind === "log" || plane.how.kind === "linear") scoreStart += plane.size;
      planes.push(plane);
    }
    run.layers.push({ ...layer, planes });
  }
  return run;
}
