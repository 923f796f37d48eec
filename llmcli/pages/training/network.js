// The network of model.js for training: whole windows of tokens forward, and the gradients of all weights backward. Only the
// architecture that this page trains: as many key-value heads as query heads, RMSNorm for queries and keys, no biases.
//
// R = tokens in all windows, T = tokens of a window, C = hidden size, H = heads, D = head size, I = intermediate size,
// V = vocabulary. The gradient of the loss with respect to x is called dx, as in other programs.

// Name and shape of each weight, in the order in which they are stored.
function tensorShapes({ vocab_size: V, hidden_size: C, intermediate_size: I, num_hidden_layers, num_attention_heads: H, head_dim: D, tie_word_embeddings: tied }) {
  const layers = Array.from({ length: num_hidden_layers }, (_, index) => {
    const name = `model.layers.${index}.`, attention = name + "self_attn.", mlp = name + "mlp.";
    return [
      [name + "input_layernorm.weight", [C]], [attention + "q_proj.weight", [H * D, C]], [attention + "k_proj.weight", [H * D, C]],
      [attention + "v_proj.weight", [H * D, C]], [attention + "o_proj.weight", [C, H * D]],
      [attention + "q_norm.weight", [D]], [attention + "k_norm.weight", [D]], [name + "post_attention_layernorm.weight", [C]],
      [mlp + "gate_proj.weight", [I, C]], [mlp + "up_proj.weight", [I, C]], [mlp + "down_proj.weight", [C, I]],
    ];
  }).flat();
  return [["model.embed_tokens.weight", [V, C]], ...layers, ["model.norm.weight", [C]], ...(tied ? [] : [["lm_head.weight", [V, C]]])];
}
const sizeOf = (shape) => shape.reduce((product, length) => product * length, 1);

// RMSNorm of each row of x [rows, width]; `scales` keeps 1 / root mean square of each row.
function normalizeRows(out, scales, x, gain, rows, width, eps) {
  for (let row = 0, start = 0; row < rows; row++, start += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x[start + i] * x[start + i];
    const scale = scales[row] = 1 / Math.sqrt(squares / width + eps);
    for (let i = 0; i < width; i++) out[start + i] = x[start + i] * scale * gain[i];
  }
}

// Adds to dx and dgain, for the gradient dout of the output of normalizeRows.
function normalizeRowsBackward(dx, dgain, dout, x, scales, gain, rows, width) {
  for (let row = 0, start = 0; row < rows; row++, start += width) {
    const scale = scales[row];
    let sum = 0;
    for (let i = 0; i < width; i++) sum += dout[start + i] * gain[i] * x[start + i];
    const shared = (sum * scale * scale * scale) / width;
    for (let i = 0; i < width; i++) {
      dx[start + i] += dout[start + i] * gain[i] * scale - x[start + i] * shared;
      dgain[i] += dout[start + i] * x[start + i] * scale;
    }
  }
}

// Rotates each head of x [R, H * D] by the angle of its position in the window, in place; backward with `direction` -1.
function rotate(x, { cos, sin }, R, T, H, D, direction) {
  const half = D / 2;
  for (let start = 0, end = R * H * D; start < end; start += D) {
    const angles = (Math.floor(start / (H * D)) % T) * half;
    for (let i = 0; i < half; i++) {
      const a = x[start + i], b = x[start + i + half], c = cos[angles + i], s = direction * sin[angles + i];
      x[start + i] = a * c - b * s;
      x[start + i + half] = b * c + a * s;
    }
  }
}

// Each row of scores [T, stride] becomes the weights of the tokens up to its own; the others get 0.
function causalSoftmax(scores, T, stride, factor) {
  for (let t = 0, start = 0; t < T; t++, start += stride) {
    let highest = -Infinity, total = 0;
    for (let i = 0; i <= t; i++) highest = Math.max(highest, scores[start + i]);
    for (let i = 0; i <= t; i++) total += scores[start + i] = Math.exp((scores[start + i] - highest) * factor);
    for (let i = 0; i <= t; i++) scores[start + i] /= total;
    scores.fill(0, start + t + 1, start + stride);
  }
}

// out = x + out, of which a share is dropped: the mask is 0 there, and elsewhere what makes up for it.
function addWithDropout(out, x, mask, size, rate, random) {
  for (let i = 0; i < size; i++) {
    mask[i] = rate && random() < rate ? 0 : 1 / (1 - rate);
    out[i] = x[i] + out[i] * mask[i];
  }
}

// From the weights and their gradient, the gradient of the scores, in place of the gradient of the weights.
function causalSoftmaxBackward(dweights, weights, T, stride, factor) {
  for (let t = 0, start = 0; t < T; t++, start += stride) {
    let sum = 0;
    for (let i = 0; i <= t; i++) sum += dweights[start + i] * weights[start + i];
    for (let i = 0; i <= t; i++) dweights[start + i] = weights[start + i] * (dweights[start + i] - sum) * factor;
    dweights.fill(0, start + t + 1, start + stride);
  }
}

function swigluRows(out, gate, up, size) {
  for (let i = 0; i < size; i++) out[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
}

// The gradients of gate and up, in their places.
function swigluRowsBackward(dout, gate, up, size) {
  for (let i = 0; i < size; i++) {
    const g = gate[i], sigmoid = 1 / (1 + Math.exp(-g)), d = dout[i];
    gate[i] = d * up[i] * sigmoid * (1 + g * (1 - sigmoid));
    up[i] = d * g * sigmoid;
  }
}

class Network {
  // For batches of at most `tokens` tokens, in windows of at most `window`; `random` draws what is dropped.
  constructor(config, tokens, window, random = Math.random) {
    this.random = random;
    const { hidden_size: C, intermediate_size: I, num_attention_heads: H, head_dim: D, vocab_size: V, num_hidden_layers } = config;
    this.config = config;
    this.shapes = tensorShapes(config);
    const P = this.shapes.reduce((sum, [, shape]) => sum + sizeOf(shape), 0), R = tokens, S = Math.ceil(window / 8) * 8;
    const ofLayer = { x: R * C, normed: R * C, scales: R, q: R * H * D, k: R * H * D, qScales: R * H, kScales: R * H, qRotated: R * H * D,
      kRotated: R * H * D, v: R * H * D, weights: R * H * S, y: R * H * D, attended: R * C, mlpNormed: R * C, mlpScales: R, gate: R * I, up: R * I, inner: R * I,
      attentionMask: R * C, mlpMask: R * C };
    const sizes = { weights: P, gradients: P, transposed: P, last: R * C, lastNormed: R * C, lastScales: R, logits: R * V,
      dx: R * C, dadded: R * C, dnormed: R * C, dq: R * H * D, dk: R * H * D, dv: R * H * D, dy: R * H * D, dinner: R * I, dscores: window * S, columns: D * S };
    for (let layer = 0; layer < num_hidden_layers; layer++) for (const [name, size] of Object.entries(ofLayer)) sizes[`${name}${layer}`] = size;
    this.arrays = new Arrays(sizes);
    this.layers = Array.from({ length: num_hidden_layers }, (_, layer) => Object.fromEntries(Object.keys(ofLayer).map((name) => [name, this.arrays[`${name}${layer}`]])));
    this.tensors = new Map(); // name -> its shape, its place in the weights, weights, gradients, and transposed weights
    let start = 0;
    for (const [name, shape] of this.shapes) {
      const part = (array) => array.subarray(start, start + sizeOf(shape)), { weights, gradients, transposed } = this.arrays;
      this.tensors.set(name, { name, shape, start, data: part(weights), gradient: part(gradients), transposed: part(transposed) });
      start += sizeOf(shape);
    }
    const half = D / 2, angles = Array.from({ length: window * half }, (_, i) => Math.floor(i / half) * config.rope_frequencies[i % half]);
    this.rotations = { cos: Float32Array.from(angles, Math.cos), sin: Float32Array.from(angles, Math.sin) };
  }

  // Must follow each change of the weights.
  changed() {
    for (const { shape, data, transposed } of this.tensors.values()) if (shape.length > 1) transpose(transposed, data, ...shape);
  }

  tensor(name) { return this.tensors.get(name + ".weight"); }
  inLayer(index, name) { return this.tensor(`model.layers.${index}.${name}`); }
  get head() { return this.tensor("lm_head") ?? this.tensor("model.embed_tokens"); }

  // out [R, rows of the matrix] = x times the transposed matrix
  linear(out, x, { shape: [rows, columns], transposed }) {
    this.arrays.multiply(out, x, transposed, this.R, rows, columns);
  }
  // Adds to the gradient of the matrix; dx gets, or is added, the gradient of x.
  linearBackward(dx, dout, x, { shape: [rows, columns], data, gradient }, adds) {
    this.arrays.multiply(gradient, dout, x, rows, columns, this.R, { transposed: true, adds: true });
    this.arrays.multiply(dx, dout, data, this.R, columns, rows, { adds });
  }

  // The logits [R, V] of windows of T tokens, `ids` [R]; `dropout` is the rate for what the layers add to the residual stream.
  forward(ids, T, dropout = 0) {
    const { hidden_size: C, num_attention_heads: H, head_dim: D, intermediate_size: I, rms_norm_eps: eps } = this.config, R = this.R = ids.length;
    this.T = T;
    this.ids = ids;
    const { last, lastNormed, lastScales, logits } = this.arrays, embedding = this.tensor("model.embed_tokens").data, first = this.layers[0].x;
    for (let row = 0; row < R; row++) for (let i = 0; i < C; i++) first[row * C + i] = embedding[ids[row] * C + i];
    this.layers.forEach((layer, index) => {
      const next = this.layers[index + 1]?.x ?? last, matrix = (name) => this.inLayer(index, name), gain = (name) => matrix(name).data;
      normalizeRows(layer.normed, layer.scales, layer.x, gain("input_layernorm"), R, C, eps);
      for (const name of ["q", "k", "v"]) this.linear(layer[name], layer.normed, matrix(`self_attn.${name}_proj`));
      for (const name of ["q", "k"]) {
        normalizeRows(layer[`${name}Rotated`], layer[`${name}Scales`], layer[name], gain(`self_attn.${name}_norm`), R * H, D, eps);
        rotate(layer[`${name}Rotated`], this.rotations, R, T, H, D, 1);
      }
      this.attention(layer);
      this.linear(layer.attended, layer.y, matrix("self_attn.o_proj"));
      addWithDropout(layer.attended, layer.x, layer.attentionMask, R * C, dropout, this.random);
      normalizeRows(layer.mlpNormed, layer.mlpScales, layer.attended, gain("post_attention_layernorm"), R, C, eps);
      for (const name of ["gate", "up"]) this.linear(layer[name], layer.mlpNormed, matrix(`mlp.${name}_proj`));
      swigluRows(layer.inner, layer.gate, layer.up, R * I);
      this.linear(next, layer.inner, matrix("mlp.down_proj"));
      addWithDropout(next, layer.attended, layer.mlpMask, R * C, dropout, this.random);
    });
    normalizeRows(lastNormed, lastScales, last, this.tensor("model.norm").data, R, C, eps);
    this.linear(logits, lastNormed, this.head);
    return logits;
  }

  // Calls `visit(offset of a window's head in [R, H * D], offset of its weights)`.
  forEachHead(visit) {
    const { num_attention_heads: H, head_dim: D } = this.config, S = Math.ceil(this.T / 8) * 8;
    for (let row = 0; row < this.R; row += this.T) for (let head = 0; head < H; head++) visit(row * H * D + head * D, (row * H + head * this.T) * S, S);
  }

  attention({ qRotated, kRotated, v, weights, y }) {
    const { num_attention_heads: H, head_dim: D } = this.config, { T, arrays } = this, stride = H * D;
    this.forEachHead((at, start, S) => {
      const scores = weights.subarray(start, start + T * S);
      transpose(arrays.columns, kRotated.subarray(at), T, D, stride, S);
      arrays.multiply(scores, qRotated.subarray(at), arrays.columns, T, S, D, { aStride: stride });
      causalSoftmax(scores, T, S, 1 / Math.sqrt(D));
      arrays.multiply(y.subarray(at), scores, v.subarray(at), T, D, T, { aStride: S, bStride: stride, cStride: stride });
    });
  }

  attentionBackward({ qRotated, kRotated, v, weights }) {
    const { num_attention_heads: H, head_dim: D } = this.config, { T, arrays } = this, { dq, dk, dv, dy, dscores, columns } = arrays, stride = H * D;
    this.forEachHead((at, start, S) => {
      const own = weights.subarray(start, start + T * S), rows = { aStride: S, bStride: stride, cStride: stride };
      arrays.multiply(dv.subarray(at), own, dy.subarray(at), T, D, T, { ...rows, transposed: true });
      transpose(columns, v.subarray(at), T, D, stride, S);
      arrays.multiply(dscores, dy.subarray(at), columns, T, S, D, { aStride: stride });
      causalSoftmaxBackward(dscores, own, T, S, 1 / Math.sqrt(D));
      arrays.multiply(dq.subarray(at), dscores, kRotated.subarray(at), T, D, T, rows);
      arrays.multiply(dk.subarray(at), dscores, qRotated.subarray(at), T, D, T, { ...rows, transposed: true });
    });
  }

  // The loss in nats of each target, summed over those that `counts` says; the logits become their gradients, divided by `total`.
  crossEntropy(targets, total, counts = () => true) {
    const { vocab_size: V } = this.config, { logits } = this.arrays;
    let loss = 0;
    for (let row = 0, start = 0; row < this.R; row++, start += V) {
      let highest = -Infinity, sum = 0;
      for (let i = 0; i < V; i++) highest = Math.max(highest, logits[start + i]);
      if (counts(row)) {
        const target = logits[start + targets[row]] - highest;
        for (let i = 0; i < V; i++) sum += logits[start + i] = Math.exp(logits[start + i] - highest);
        loss += Math.log(sum) - target;
        for (let i = 0; i < V; i++) logits[start + i] /= sum * total;
        logits[start + targets[row]] -= 1 / total;
      } else logits.fill(0, start, start + V);
    }
    return loss;
  }

  // Adds the gradients of all weights, for the gradients of the logits that `crossEntropy` left.
  backward() {
    const { hidden_size: C, num_attention_heads: H, head_dim: D, intermediate_size: I } = this.config, { R, T, ids } = this;
    const { last, lastNormed, lastScales, logits, dx, dadded, dnormed, dq, dk, dv, dy, dinner } = this.arrays;
    const norm = this.tensor("model.norm");
    this.linearBackward(dnormed, logits, lastNormed, this.head, false);
    dx.fill(0, 0, R * C);
    normalizeRowsBackward(dx, norm.gradient, dnormed, last, lastScales, norm.data, R, C);
    for (const [index, layer] of [...this.layers.entries()].reverse()) {
      const matrix = (name) => this.inLayer(index, name), ofNorm = (name) => [matrix(name).gradient, matrix(name).data];
      for (let i = 0; i < R * C; i++) dadded[i] = dx[i] * layer.mlpMask[i];
      this.linearBackward(dinner, dadded, layer.inner, matrix("mlp.down_proj"), false);
      swigluRowsBackward(dinner, layer.gate, layer.up, R * I);
      this.linearBackward(dnormed, layer.gate, layer.mlpNormed, matrix("mlp.gate_proj"), false);
      this.linearBackward(dnormed, layer.up, layer.mlpNormed, matrix("mlp.up_proj"), true);
      const [dmlpGain, mlpGain] = ofNorm("post_attention_layernorm");
      normalizeRowsBackward(dx, dmlpGain, dnormed, layer.attended, layer.mlpScales, mlpGain, R, C);
      for (let i = 0; i < R * C; i++) dadded[i] = dx[i] * layer.attentionMask[i];
      this.linearBackward(dy, dadded, layer.y, matrix("self_attn.o_proj"), false);
      this.attentionBackward(layer);
      for (const [name, drotated] of [["q", dq], ["k", dk]]) {
        rotate(drotated, this.rotations, R, T, H, D, -1);
        const into = layer[`${name}Rotated`].subarray(0, R * H * D).fill(0), [dgain, gain] = ofNorm(`self_attn.${name}_norm`);
        normalizeRowsBackward(into, dgain, drotated, layer[name], layer[`${name}Scales`], gain, R * H, D);
        this.linearBackward(dnormed, into, layer.normed, matrix(`self_attn.${name}_proj`), name === "k");
      }
      this.linearBackward(dnormed, dv, layer.normed, matrix("self_attn.v_proj"), true);
      const [dgain, gain] = ofNorm("input_layernorm");
      normalizeRowsBackward(dx, dgain, dnormed, layer.x, layer.scales, gain, R, C);
    }
    const embedding = this.tensor("model.embed_tokens").gradient;
    for (let row = 0; row < R; row++) for (let i = 0; i < C; i++) embedding[ids[row] * C + i] += dx[row * C + i];
  }
}
