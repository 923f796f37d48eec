// The network of model.js for training: whole windows of tokens forward, and the gradients of all weights backward. Only the
// architecture that this page trains: as many key-value heads as query heads, RMSNorm for queries and keys, no biases.
//
// The network is a list of operations. Each computes the `data` [R, width] of a value from others. Backward, in reverse
// order, each adds to the gradients of the others, for the `gradient` of its own value.
//
// R = tokens in all windows, T = tokens of a window, C = hidden size, H = heads, D = head size, I = intermediate size,
// V = vocabulary. The gradient of the loss with respect to x is called dx, as in other programs.

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

// From the weights and their gradient, the gradient of the scores, in place of the gradient of the weights.
function causalSoftmaxBackward(dweights, weights, T, stride, factor) {
  for (let t = 0, start = 0; t < T; t++, start += stride) {
    let sum = 0;
    for (let i = 0; i <= t; i++) sum += dweights[start + i] * weights[start + i];
    for (let i = 0; i <= t; i++) dweights[start + i] = weights[start + i] * (dweights[start + i] - sum) * factor;
    dweights.fill(0, start + t + 1, start + stride);
  }
}

const rowLength = (T) => Math.ceil(T / 8) * 8; // of scores: the kernel computes eight columns at once

class Network {
  // For batches of at most `tokens` tokens, in windows of at most `window`; `random` draws what is dropped.
  constructor(config, tokens, window, random = Math.random) {
    Object.assign(this, { config, window, random, values: [], operations: [], size: 0 });
    this.tensors = new Map(); // name -> its shape, its place in the weights, weights, gradients, and transposed weights
    this.logits = this.build();
    const { size } = this, sizes = { weights: size, gradients: size, transposed: size };
    sizes.columns = config.head_dim * rowLength(window);
    this.values.forEach(({ width }, i) => { sizes[`data${i}`] = sizes[`gradient${i}`] = tokens * width; });
    const arrays = this.arrays = new Arrays(sizes), { weights, gradients, transposed } = arrays;
    for (const [i, value] of this.values.entries()) {
      Object.assign(value, { data: arrays[`data${i}`], gradient: arrays[`gradient${i}`] });
    }
    for (const tensor of this.tensors.values()) {
      const part = (array) => array.subarray(tensor.start, tensor.end);
      Object.assign(tensor, { data: part(weights), gradient: part(gradients), transposed: part(transposed) });
    }
  }

  // Must follow each change of the weights.
  changed() {
    for (const { shape, data, transposed } of this.tensors.values()) if (shape.length > 1) transpose(transposed, data, ...shape);
  }

  // Lists weights and operations; returns the value of the last operation, the logits.
  build() {
    const { vocab_size: V, hidden_size: C, intermediate_size: I, num_hidden_layers: L, ...rest } = this.config;
    const { num_attention_heads: H, head_dim: D, tie_word_embeddings: isTied } = rest;
    const linear = (x, name, width) => this.linear(x, this.tensor(name, width, x.width));
    const norm = (x, name, width) => this.normalize(x, this.tensor(name, width));
    const embedding = this.tensor("model.embed_tokens", V, C);
    let x = this.embed(embedding);
    for (let layer = 0; layer < L; layer++) {
      const name = `model.layers.${layer}.`, attention = name + "self_attn.", mlp = name + "mlp.";
      const normed = norm(x, name + "input_layernorm", C);
      const [q, k, v] = ["q", "k", "v"].map((one) => linear(normed, `${attention}${one}_proj`, H * D));
      const rotated = ["q", "k"].map((one, i) => this.rotate(norm([q, k][i], `${attention}${one}_norm`, D)));
      x = this.add(x, linear(this.attend(...rotated, v), attention + "o_proj", C));
      const mlpNormed = norm(x, name + "post_attention_layernorm", C);
      const [gate, up] = ["gate", "up"].map((one) => linear(mlpNormed, `${mlp}${one}_proj`, I));
      x = this.add(x, linear(this.swiglu(gate, up), mlp + "down_proj", C));
    }
    const normed = norm(x, "model.norm", C);
    return isTied ? this.linear(normed, embedding) : linear(normed, "lm_head", V);
  }

  // The logits [R, V] of windows of T tokens, `ids` [R]; `dropout` is the rate for what the layers add to the residual stream.
  forward(ids, T, dropout = 0) {
    Object.assign(this, { ids, T, dropout, R: ids.length });
    for (const { forward } of this.operations) forward();
    return this.logits.data;
  }

  // Adds the gradients of all weights, for the gradients of the logits that `crossEntropy` left.
  backward() {
    for (const value of this.values) if (value !== this.logits) value.gradient.fill(0, 0, this.R * value.width);
    for (const { backward } of [...this.operations].reverse()) backward();
  }

  // The loss in nats, summed over the targets that `counts` says. Their logits get gradients, divided by `total`.
  crossEntropy(targets, total, counts = () => true) {
    const { data, gradient, width: V } = this.logits;
    let loss = 0;
    gradient.fill(0, 0, this.R * V);
    for (let row = 0, start = 0; row < this.R; row++, start += V) {
      if (!counts(row)) continue;
      let highest = -Infinity, sum = 0;
      for (let i = 0; i < V; i++) highest = Math.max(highest, data[start + i]);
      for (let i = 0; i < V; i++) sum += gradient[start + i] = Math.exp(data[start + i] - highest);
      for (let i = 0; i < V; i++) gradient[start + i] /= sum * total;
      gradient[start + targets[row]] -= 1 / total;
      loss += Math.log(sum) + highest - data[start + targets[row]];
    }
    return loss;
  }

  // ---- operations

  tensor(layer, ...shape) {
    const name = `${layer}.weight`, start = this.size;
    this.size += shape.reduce((product, length) => product * length, 1);
    this.tensors.set(name, { name, shape, start, end: this.size });
    return this.tensors.get(name);
  }
  value(width) {
    this.values.push({ width, data: null, gradient: null });
    return this.values.at(-1);
  }
  operation(width, forward, backward) {
    const out = this.value(width);
    this.operations.push({ forward: () => forward(out), backward: () => backward(out) });
    return out;
  }

  embed(matrix) {
    const C = matrix.shape[1], row = (array, i) => array.subarray(i * C, (i + 1) * C);
    return this.operation(C, ({ data }) => {
      this.ids.forEach((id, i) => row(data, i).set(row(matrix.data, id)));
    }, ({ gradient }) => {
      this.ids.forEach((id, i) => add(row(matrix.gradient, id), row(gradient, i)));
    });
  }

  // x times the transposed matrix
  linear(x, matrix) {
    const [rows, columns] = matrix.shape;
    return this.operation(rows, ({ data }) => {
      this.arrays.multiply(data, x.data, matrix.transposed, this.R, rows, columns);
    }, ({ gradient }) => {
      this.arrays.multiply(matrix.gradient, gradient, x.data, rows, columns, this.R, { transposed: true, adds: true });
      this.arrays.multiply(x.gradient, gradient, matrix.data, this.R, columns, rows, { adds: true });
    });
  }

  // RMSNorm of each part of x that is as wide as the gain; `scales` are 1 / root mean square of each.
  normalize(x, gain) {
    const width = gain.shape[0], scales = this.value(x.width / width);
    return this.operation(x.width, ({ data }) => {
      for (let row = 0, start = 0; row < this.R * scales.width; row++, start += width) {
        let squares = 0;
        for (let i = 0; i < width; i++) squares += x.data[start + i] * x.data[start + i];
        const scale = scales.data[row] = 1 / Math.sqrt(squares / width + this.config.rms_norm_eps);
        for (let i = 0; i < width; i++) data[start + i] = x.data[start + i] * scale * gain.data[i];
      }
    }, ({ gradient }) => {
      for (let row = 0, start = 0; row < this.R * scales.width; row++, start += width) {
        const scale = scales.data[row];
        let sum = 0;
        for (let i = 0; i < width; i++) sum += gradient[start + i] * gain.data[i] * x.data[start + i];
        const shared = (sum * scale * scale * scale) / width;
        for (let i = 0; i < width; i++) {
          x.gradient[start + i] += gradient[start + i] * gain.data[i] * scale - x.data[start + i] * shared;
          gain.gradient[i] += gradient[start + i] * x.data[start + i] * scale;
        }
      }
    });
  }

  // Rotates each head of x by the angle of its position in the window, in place.
  rotate(x) {
    const { head_dim: D, rope_frequencies: frequencies } = this.config, half = D / 2;
    const angles = Array.from({ length: this.window * half }, (_, i) => Math.floor(i / half) * frequencies[i % half]);
    const cos = Float32Array.from(angles, Math.cos), sin = Float32Array.from(angles, Math.sin);
    const turn = (array, direction) => {
      for (let start = 0; start < this.R * x.width; start += D) {
        const first = (Math.floor(start / x.width) % this.T) * half;
        for (let i = 0; i < half; i++) {
          const a = array[start + i], b = array[start + i + half], c = cos[first + i], s = direction * sin[first + i];
          array[start + i] = a * c - b * s;
          array[start + i + half] = b * c + a * s;
        }
      }
    };
    this.operations.push({ forward: () => turn(x.data, 1), backward: () => turn(x.gradient, -1) });
    return x;
  }

  // Causal attention, one head of a window at a time.
  attend(q, k, v) {
    const { num_attention_heads: H, head_dim: D } = this.config, stride = H * D, factor = 1 / Math.sqrt(D);
    const weights = this.value(H * rowLength(this.window));
    const forEachHead = (visit) => { // with what views the part of an array, and of the weights
      const { R, T } = this, S = rowLength(T);
      for (let row = 0; row < R; row += T) for (let head = 0; head < H; head++) {
        const start = (row * H + head * T) * S;
        const own = (array) => array.subarray(row * stride + head * D);
        visit(own, (array) => array.subarray(start, start + T * S), T, S);
      }
    };
    return this.operation(stride, ({ data }) => forEachHead((own, ofWeights, T, S) => {
      const { arrays } = this, scores = ofWeights(weights.data);
      transpose(arrays.columns, own(k.data), T, D, stride, S);
      arrays.multiply(scores, own(q.data), arrays.columns, T, S, D, { aStride: stride });
      causalSoftmax(scores, T, S, factor);
      arrays.multiply(own(data), scores, own(v.data), T, D, T, { aStride: S, bStride: stride, cStride: stride });
    }), ({ gradient }) => forEachHead((own, ofWeights, T, S) => {
      const { arrays } = this, scores = ofWeights(weights.data), dscores = ofWeights(weights.gradient);
      const rows = { aStride: S, bStride: stride, cStride: stride };
      arrays.multiply(own(v.gradient), scores, own(gradient), T, D, T, { ...rows, transposed: true });
      transpose(arrays.columns, own(v.data), T, D, stride, S);
      arrays.multiply(dscores, own(gradient), arrays.columns, T, S, D, { aStride: stride });
      causalSoftmaxBackward(dscores, scores, T, S, factor);
      arrays.multiply(own(q.gradient), dscores, own(k.data), T, D, T, rows);
      arrays.multiply(own(k.gradient), dscores, own(q.data), T, D, T, { ...rows, transposed: true });
    }));
  }

  // silu(gate) * up
  swiglu(gate, up) {
    return this.operation(gate.width, ({ width, data }) => {
      const gates = gate.data, ups = up.data, size = this.R * width;
      for (let i = 0; i < size; i++) data[i] = (gates[i] / (1 + Math.exp(-gates[i]))) * ups[i];
    }, ({ width, gradient }) => {
      const gates = gate.data, ups = up.data, dgates = gate.gradient, dups = up.gradient, size = this.R * width;
      for (let i = 0; i < size; i++) {
        const g = gates[i], sigmoid = 1 / (1 + Math.exp(-g)), d = gradient[i];
        dgates[i] = d * ups[i] * sigmoid * (1 + g * (1 - sigmoid));
        dups[i] = d * g * sigmoid;
      }
    });
  }

  // x + y, of which a share is dropped: the mask is 0 there, and elsewhere what makes up for it.
  add(x, y) {
    const mask = this.value(y.width);
    return this.operation(y.width, ({ width, data }) => {
      const { dropout, random } = this, kept = 1 / (1 - dropout);
      for (let i = 0; i < this.R * width; i++) {
        mask.data[i] = dropout && random() < dropout ? 0 : kept;
        data[i] = x.data[i] + y.data[i] * mask.data[i];
      }
    }, ({ width, gradient }) => {
      for (let i = 0; i < this.R * width; i++) {
        x.gradient[i] += gradient[i];
        y.gradient[i] = gradient[i] * mask.data[i];
      }
    });
  }
}
