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

// The product of a matrix [rows, columns] and a vector. Four sums at once, as the processor adds them in parallel.
function multiply({ rows, columns, data, scales }, x) {
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
    y[row] = (a + b + c + d) * (scales ? scales[row] : 1);
  }
  return y;
}

// A row of a matrix.
function rowOf({ columns, data, scales }, row) {
  return Float32Array.from(data.subarray(row * columns, (row + 1) * columns), (value) => value * (scales ? scales[row] : 1));
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
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
};

class Model {
  constructor(config, tensors) {
    const tensor = (name) => tensors.get(name);
    this.config = config;
    this.embedding = tensor("model.embed_tokens.weight");
    this.norm = tensor("model.norm.weight").data;
    this.head = tensor("lm_head.weight") ?? this.embedding; // without one of its own: tied embeddings
    const experts = [...Array(config.num_experts).keys()];
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, index) => {
      const name = `model.layers.${index}.`, attention = name + "self_attn.", mlp = name + "mlp.";
      const swiglu = (start) => Object.fromEntries(["gate", "up", "down"].map((which) => [which, tensor(`${start}${which}_proj.weight`)]));
      return {
        inputNorm: tensor(name + "input_layernorm.weight").data,
        q: tensor(attention + "q_proj.weight"), qBias: tensor(attention + "q_proj.bias"), qNorm: tensor(attention + "q_norm.weight"),
        k: tensor(attention + "k_proj.weight"), kBias: tensor(attention + "k_proj.bias"), kNorm: tensor(attention + "k_norm.weight"),
        v: tensor(attention + "v_proj.weight"), vBias: tensor(attention + "v_proj.bias"),
        o: tensor(attention + "o_proj.weight"),
        mlpNorm: tensor(name + "post_attention_layernorm.weight").data,
        router: tensor(mlp + "gate.weight"),
        experts: config.num_experts ? experts.map((expert) => swiglu(`${mlp}experts.${expert}.`)) : [swiglu(mlp)],
        keys: [], values: [], // of each position, [G * D]
      };
    });
    this.length = 0; // tokens in the KV cache
    this.without = new Set(); // what is switched off: "2" is layer 2, "2.3" head 3 of layer 2, counted from 1
    // What receives the activations of each token, or null: residual(x), once before the first layer and then after each;
    // attention(layer, head, weights); heads(layer, their outputs [H * D]). Layers and heads are counted from 0.
    this.recorder = null;
  }

  // Drops all but the first `length` tokens from the KV cache.
  rewind(length = 0) {
    this.length = Math.min(length, this.length);
  }

  // Switches layers and heads off, and all others on. The KV cache is emptied: it depends on them.
  switchOff(names) {
    this.without = new Set(names);
    this.rewind();
  }

  // Processes a token. Returns the logits of the next one, or null if they are not wanted.
  step(token, wantsLogits = true) {
    const x = rowOf(this.embedding, token);
    this.recorder?.residual(x.slice());
    this.layers.forEach((layer, index) => {
      if (!this.without.has(`${index + 1}`)) {
        add(x, this.attention(layer, index, this.rmsNorm(x, layer.inputNorm)));
        add(x, this.mlp(layer, this.rmsNorm(x, layer.mlpNorm)));
      }
      this.recorder?.residual(x.slice());
    });
    this.length++;
    return wantsLogits ? this.logits(x) : null;
  }

  // The logits of a residual stream: of the last layer, or of an earlier one, as if no layer followed (the logit lens).
  logits(x) {
    return multiply(this.head, this.rmsNorm(x, this.norm));
  }

  // The vector whose product with the residual stream x is the logit of a token, as long as the scale of the last norm stays.
  logitDirection(x, token) {
    const scale = this.rmsScale(x);
    return rowOf(this.head, token).map((value, i) => value * this.norm[i] * scale);
  }

  // Causal attention. H / G query heads share each key-value head.
  attention(layer, index, x) {
    const { num_attention_heads: H, num_key_value_heads: G, head_dim: D } = this.config, position = this.length;
    const frequencies = this.config.no_rope_layers[index] === 0 ? [] : this.config.rope_frequencies; // SmolLM3 has layers without
    const rotations = frequencies.map((frequency) => [Math.cos(position * frequency), Math.sin(position * frequency)]);
    const q = this.project(layer.q, layer.qBias, x), k = this.project(layer.k, layer.kBias, x), v = this.project(layer.v, layer.vBias, x);
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
      this.recorder?.attention(index, head, weights);
      if (this.without.has(`${index + 1}.${head + 1}`)) continue; // its output stays 0
      for (let t = 0; t <= position; t++) {
        const value = layer.values[t], weight = weights[t];
        for (let i = 0; i < D; i++) y[own + i] += weight * value[shared + i];
      }
    }
    this.recorder?.heads(index, y);
    return multiply(layer.o, y);
  }

  project(matrix, bias, x) {
    const y = multiply(matrix, x);
    if (bias) add(y, bias.data);
    return y;
  }

  // For each head: RMSNorm, if the model has one for queries and keys, then rotary positions (arXiv:2104.09864), which
  // rotate each pair (i, i + D/2) by an angle that grows with the position.
  normAndRotate(heads, norm, rotations) {
    const D = this.config.head_dim, half = D / 2;
    for (let start = 0; start < heads.length; start += D) {
      const head = heads.subarray(start, start + D);
      if (norm) head.set(this.rmsNorm(head, norm.data));
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
    const chosen = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, active);
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
    const g = multiply(gate, x), u = multiply(up, x), activation = ACTIVATIONS[this.config.hidden_act];
    for (let i = 0; i < g.length; i++) g[i] = activation(g[i]) * u[i];
    return multiply(down, g);
  }

  // x / sqrt(mean(x^2) + eps) * gain, arXiv:1910.07467
  rmsNorm(x, gain) {
    const scale = this.rmsScale(x);
    return x.map((value, i) => value * scale * gain[i]);
  }
  rmsScale(x) {
    let squares = 0;
    for (const value of x) squares += value * value;
    return 1 / Math.sqrt(squares / x.length + this.config.rms_norm_eps);
  }
}
