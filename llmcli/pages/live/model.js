// The decoder: token ids in, logits out. numpy_runtime.py of llmcli is the same network, with the same names.
//
//     x = the embedding of the token             the residual stream
//     for each layer:
//         x = x + attention(RMSNorm(x))          attends to this token and to earlier ones
//         x = x + SwiGLU(RMSNorm(x))             transforms this token
//     logits = output embedding of RMSNorm(x)
//
// One token is processed at a time. The keys and values of all tokens so far are kept (the KV cache), so that a new
// token takes one pass through the network. H, G = query heads, key-value heads; D = head size.

// The tensors of the page: name -> {rows, columns, data, scales}. A row of int8 weights is multiplied by its scale; other
// tensors have no scales. `entries` say where each tensor is in `buffer`.
function readTensors(entries, buffer) {
  return new Map(entries.map(({ name, shape, dtype, offset, scales }) => {
    const rows = shape[0], columns = shape[1] ?? 1, size = rows * columns;
    const data = dtype === "int8" ? new Int8Array(buffer, offset, size)
      : dtype === "f16" ? Float32Array.from(new Uint16Array(buffer, offset, size), fromFloat16)
        : new Float32Array(buffer, offset, size);
    return [name, { rows, columns, data, scales: dtype === "int8" ? new Float32Array(buffer, scales, rows) : null }];
  }));
}

function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

// The product of a matrix [rows, columns] and a vector, plus its bias if it has one. Four sums at once, as the processor adds them in parallel.
function multiply({ rows, columns, data, scales, bias }, x) {
  const y = new Float32Array(rows), whole = columns - (columns % 4);
  for (let row = 0, i = 0; row < rows; row++) {
    let a = 0, b = 0, c = 0, d = 0, j = 0;
    for (; j < whole; j += 4, i += 4) {
      a += data[i] * x[j];
      b += data[i + 1] * x[j + 1];
      c += data[i + 2] * x[j + 2];
      d += data[i + 3] * x[j + 3];
    }
    for (; j < columns; j++, i++) a += data[i] * x[j];
    y[row] = (a + b + c + d) * (scales ? scales[row] : 1) + (bias ? bias[row] : 0);
  }
  return y;
}

function rowOf({ columns, data, scales }, row) {
  return Float32Array.from(data.subarray(row * columns, (row + 1) * columns), (value) => value * (scales ? scales[row] : 1));
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

function withoutMean(x) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  return x.map((value) => value - mean);
}

function softmax(x) {
  let highest = -Infinity, total = 0;
  for (const value of x) highest = Math.max(highest, value);
  const y = Float64Array.from(x, (value) => Math.exp(value - highest));
  for (const value of y) total += value;
  return y.map((value) => value / total);
}

const ACTIVATIONS = {
  silu: (x) => x / (1 + Math.exp(-x)),
  // x * (1 + tanh(z)) / 2 for z = sqrt(2 / pi) * (x + 0.044715 * x^3), arXiv:1606.08415
  gelu_pytorch_tanh: (x) => x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  // x * (1 + erf(x / sqrt(2))) / 2; erf by formula 7.1.26 of Abramowitz and Stegun
  gelu: (x) => {
    const t = 1 / (1 + (0.3275911 * Math.abs(x)) / Math.SQRT2), factors = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
    const tail = factors.reduce((sum, factor) => (sum + factor) * t, 0) * Math.exp((-x * x) / 2);
    return (x * (x < 0 ? tail : 2 - tail)) / 2;
  },
};

class Model {
  constructor(config, tensors) {
    const tensor = (name) => tensors.get(name);
    this.config = config;
    const norm = (name) => ({ gain: tensor(name + ".weight").data, bias: tensor(name + ".bias")?.data });
    const matrix = (name) => ({ ...tensor(name + ".weight"), bias: tensor(name + ".bias")?.data });
    this.embedding = tensor("model.embed_tokens.weight");
    this.positions = tensor("model.embed_positions.weight"); // of GPT-2: learned, added to the embeddings
    this.norm = norm("model.norm");
    this.head = tensor("lm_head.weight") ?? this.embedding; // without one of its own: tied embeddings
    const experts = [...Array(config.num_experts).keys()];
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, index) => {
      const name = `model.layers.${index}.`, attention = name + "self_attn.", mlp = name + "mlp.";
      const swiglu = (start) => Object.fromEntries(["gate", "up", "down"].map((which) => [which, matrix(`${start}${which}_proj`)]));
      return {
        inputNorm: norm(name + "input_layernorm"),
        q: matrix(attention + "q_proj"), qNorm: tensor(attention + "q_norm.weight"),
        k: matrix(attention + "k_proj"), kNorm: tensor(attention + "k_norm.weight"),
        v: matrix(attention + "v_proj"), o: matrix(attention + "o_proj"),
        mlpNorm: norm(name + "post_attention_layernorm"),
        router: tensor(mlp + "gate.weight"),
        experts: config.num_experts ? experts.map((expert) => swiglu(`${mlp}experts.${expert}.`)) : [swiglu(mlp)],
        keys: [], values: [], // of each position, [G * D]
      };
    });
    this.length = 0; // tokens in the KV cache
    this.without = new Set(); // what is switched off: "2" is layer 2, "2.3" head 3 of layer 2, counted from 1
    // Of the last token: the residual stream before the first layer and after each; attention weights, [L][H][tokens so
    // far]; outputs of the heads, [L][H * D]. Layers that are switched off have none.
    this.activations = { residuals: [], weights: [], outputs: [] };
  }

  // Drops all but the first `length` tokens from the KV cache.
  rewind(length = 0) {
    this.length = Math.min(length, this.length);
  }

  // Makes space in a full KV cache: the oldest tokens go, except the first few (a context shift). The keys of the others are
  // rotated to their new positions. Returns [position, number] of the tokens that go.
  shift() {
    const first = Math.min(4, Math.floor(this.length / 4)), count = Math.max(1, Math.floor(this.length / 8));
    this.layers.forEach((layer, index) => {
      layer.keys.splice(first, count);
      layer.values.splice(first, count);
      const rotations = this.rotations(index, -count);
      layer.keys.slice(first).forEach((key) => this.normAndRotate(key, null, rotations));
    });
    this.length -= count;
    return [first, count];
  }

  // Switches layers and heads off, and all others on. The KV cache is emptied: it depends on them.
  switchOff(names) {
    this.without = new Set(names);
    this.rewind();
  }

  // Processes a token. Returns the logits of the next one, or null if they are not wanted.
  step(token, wantsLogits = true) {
    const x = rowOf(this.embedding, token), parallel = this.config.use_parallel_residual; // GPT-NeoX: the MLP reads the same x
    if (this.positions) add(x, rowOf(this.positions, this.length));
    this.activations = { residuals: [x.slice()], weights: this.layers.map(() => []), outputs: [] };
    this.layers.forEach((layer, index) => {
      if (!this.without.has(`${index + 1}`)) {
        const before = x.slice();
        add(x, this.attention(layer, index, this.normalize(x, layer.inputNorm)));
        add(x, this.mlp(layer, this.normalize(parallel ? before : x, layer.mlpNorm)));
      }
      this.activations.residuals.push(x.slice());
    });
    this.length++;
    return wantsLogits ? this.logits(x) : null;
  }

  // The logits of a residual stream: of the last layer, or of an earlier one, as if no layer followed (the logit lens).
  logits(x) {
    return multiply(this.head, this.normalize(x, this.norm));
  }

  // The vector whose product with the residual stream x is the logit of a token, as long as the scale of the last norm stays.
  logitDirection(x, token) {
    const { gain, bias } = this.norm, scale = this.rmsScale(bias ? withoutMean(x) : x);
    const direction = rowOf(this.head, token).map((value, i) => value * gain[i] * scale);
    return bias ? withoutMean(direction) : direction;
  }

  // Causal attention. H / G query heads share each key-value head.
  attention(layer, index, x) {
    const { num_attention_heads: H, num_key_value_heads: G, head_dim: D } = this.config, position = this.length;
    const rotations = this.rotations(index, position);
    const q = multiply(layer.q, x), k = multiply(layer.k, x), v = multiply(layer.v, x);
    this.normAndRotate(q, layer.qNorm, rotations);
    this.normAndRotate(k, layer.kNorm, rotations);
    layer.keys[position] = k;
    layer.values[position] = v;
    const y = new Float32Array(H * D), scores = new Float32Array(position + 1);
    for (let head = 0; head < H; head++) {
      const own = head * D, shared = Math.floor(head / (H / G)) * D;
      for (let t = 0; t <= position; t++) {
        const key = layer.keys[t];
        let sum = 0;
        for (let i = 0; i < D; i++) sum += q[own + i] * key[shared + i];
        scores[t] = sum / Math.sqrt(D);
      }
      const weights = softmax(scores);
      this.activations.weights[index][head] = weights;
      if (this.without.has(`${index + 1}.${head + 1}`)) continue; // its output stays 0
      for (let t = 0; t <= position; t++) {
        const value = layer.values[t], weight = weights[t];
        for (let i = 0; i < D; i++) y[own + i] += weight * value[shared + i];
      }
    }
    this.activations.outputs[index] = y;
    return multiply(layer.o, y);
  }

  // [cos, sin] of the rotary angles at a position.
  rotations(index, position) {
    const hasPositions = this.config.no_rope_layers?.[index] !== 0; // some layers of SmolLM3 have none
    const frequencies = hasPositions ? this.config.rope_frequencies : [];
    return frequencies.map((frequency) => [Math.cos(position * frequency), Math.sin(position * frequency)]);
  }

  // For each head: RMSNorm, if the model has one for queries and keys, then rotary positions (arXiv:2104.09864), which
  // rotate each pair (i, i + D/2) by an angle that grows with the position.
  normAndRotate(heads, norm, rotations) {
    const D = this.config.head_dim, half = D / 2;
    for (let start = 0; start < heads.length; start += D) {
      const head = heads.subarray(start, start + D);
      if (norm) head.set(this.normalize(head, { gain: norm.data }));
      for (let i = 0; i < rotations.length; i++) {
        const a = head[i], b = head[i + half], [cos, sin] = rotations[i];
        head[i] = a * cos - b * sin;
        head[i + half] = b * cos + a * sin;
      }
    }
  }

  // A SwiGLU, or a sparse mixture of several: a router chooses some experts for each token, and weights them.
  mlp(layer, x) {
    if (!layer.router) return this.swiglu(layer.experts[0], x);
    const { num_experts_per_tok: active, norm_topk_prob: normalizes } = this.config;
    const probabilities = softmax(multiply(layer.router, x));
    const chosen = byProbability(probabilities).slice(0, active);
    const total = normalizes ? chosen.reduce((sum, expert) => sum + probabilities[expert], 0) : 1;
    const y = new Float32Array(x.length);
    for (const expert of chosen) {
      const weight = probabilities[expert] / total;
      add(y, this.swiglu(layer.experts[expert], x).map((value) => value * weight));
    }
    return y;
  }

  // down(silu(gate(x)) * up(x)), or with another activation, arXiv:2002.05202
  swiglu({ gate, up, down }, x) {
    const activation = ACTIVATIONS[this.config.hidden_act], u = multiply(up, x);
    if (!gate.data) return multiply(down, u.map(activation)); // GPT-2 and GPT-NeoX have no gates
    const g = multiply(gate, x);
    for (let i = 0; i < g.length; i++) g[i] = activation(g[i]) * u[i];
    return multiply(down, g);
  }

  // RMSNorm: x / sqrt(mean(x^2) + eps) * gain, arXiv:1910.07467. With a bias it is a LayerNorm, of x minus its mean.
  normalize(x, { gain, bias }) {
    const centered = bias ? withoutMean(x) : x, scale = this.rmsScale(centered);
    return centered.map((value, i) => value * scale * gain[i] + (bias ? bias[i] : 0));
  }
  rmsScale(x) {
    let squares = 0;
    for (const value of x) squares += value * value;
    return 1 / Math.sqrt(squares / x.length + this.config.rms_norm_eps);
  }
}
