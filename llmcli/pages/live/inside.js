// What happens inside a prediction: what the model would predict after each layer, what each head attends to, and what each part and
// each token contributes. The figures are those of `llm explain`.
const MAX_RECORDED = 256; // the last tokens of a text, whose attention is kept
const MAX_HIDING_WORK = 4e9; // parameters x tokens that are processed while tokens are hidden: some seconds
const READ_AT_ONCE = 8; // tokens between two checks

const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
const byProbability = (probabilities) => [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);

// A network without its n-gram cache, and its activations.
class Recording {
  constructor(model) {
    this.runtime = new Runtime(model, null);
    this.weights = []; // of each token in the KV cache: [L][H][tokens so far]
    this.first = 0; // the first token whose attention is kept
    this.residuals = []; // of the last token, after 0, 1, ... L layers
    this.outputs = []; // of its heads, in each layer
    model.recorder = {
      residual: (x) => {
        if (this.residuals.length > model.layers.length) this.residuals = [];
        if (!this.residuals.length) { // a new token
          this.weights.push(model.layers.map(() => []));
          this.outputs = [];
        }
        this.residuals.push(x);
      },
      attention: (layer, head, weights) => { this.weights.at(-1)[layer][head] = Float32Array.from(weights); },
      heads: (layer, y) => { this.outputs[layer] = y; },
    };
  }

  // Processes a text, of which the beginning may be known.
  async read(ids, check) {
    const { runtime } = this;
    this.weights.length = runtime.reuse(ids);
    for (let i = runtime.length; i < ids.length; i += READ_AT_ONCE) {
      await check();
      runtime.read(ids.slice(i, i + READ_AT_ONCE));
    }
    this.first = Math.max(0, ids.length - MAX_RECORDED);
    this.weights.fill(null, 0, this.first);
  }

  // The weights of a token, [L][H]. Positions count from the first token whose attention is kept.
  attention(position) {
    const layers = this.weights[this.first + position] ?? [];
    return layers.map((heads) => heads.map((weights) => weights.subarray(this.first)));
  }

  // The logit lens: the most likely next tokens if no layer followed, after 0, 1, ... L layers; only those that `fits` accepts.
  lens(fits) {
    return this.residuals.map((x) => {
      const probabilities = fittingProbabilities(this.runtime.model.logits(x), fits);
      return byProbability(probabilities).slice(0, LENS_TOKENS).map((id) => ({ label: tokenizer.label(id), probability: probabilities[id] }));
    });
  }

  // Direct logit attribution: what the embedding, each head [L][H] and each MLP [L] adds to the logit of a token, which is
  // their sum.
  attribution(token) {
    const { model } = this.runtime, { num_attention_heads: H, head_dim: D } = model.config;
    const direction = model.logitDirection(this.residuals.at(-1), token), streams = this.residuals.map((x) => dot(x, direction));
    const heads = model.layers.map(({ o }, layer) => Array.from({ length: H }, (_, head) => {
      const y = new Float32Array(H * D), own = head * D;
      if (this.outputs[layer]) y.set(this.outputs[layer].subarray(own, own + D), own);
      return dot(multiply({ ...o, bias: null }, y), direction);
    }));
    const mlp = heads.map((row, layer) => streams[layer + 1] - streams[layer] - row.reduce((a, b) => a + b));
    return { embedding: streams[0] + model.logitBias(token), heads, mlp };
  }
}

// The uncertainty of a prediction in bits.
const entropy = (choices) => choices.reduce((sum, { probability: p }) => sum - (p > 0 ? p * Math.log2(p) : 0), 0);

// Probabilities among the tokens that `fits` accepts.
function fittingProbabilities(logits, fits) {
  return softmax(Float64Array.from(logits.subarray(0, tokenizer.tokens.length), (logit, id) => (fits(id) ? logit : -Infinity)));
}

// What the prediction of `token` loses without each token of a text, in bits, from the last but one back: yields
// [position, bits]. The tokens after the one that is left out move forward.
async function* effects(model, ids, token, fits, check) {
  const count = Math.min(ids.length, MAX_RECORDED, Math.floor(Math.sqrt((2 * MAX_HIDING_WORK) / model.config.parameters)));
  const first = Math.max(0, ids.length - count);
  async function bitsAfter(start, rest) { // of `token`, after the first `start` tokens and `rest`
    let logits = null;
    model.rewind(start);
    for (const [i, id] of rest.entries()) {
      await check();
      logits = model.step(id, i === rest.length - 1);
    }
    return Math.log2(fittingProbabilities(logits, fits)[token]);
  }
  const all = await bitsAfter(0, ids);
  for (let hidden = ids.length - 2; hidden >= first; hidden--) yield [hidden, all - await bitsAfter(hidden, ids.slice(hidden + 1))];
}

// The most likely words of two predictions, with the probability and the place of each.
function pairs(first, second) {
  const name = ({ text, continues }) => (continues ? "…" : "") + text;
  const [before, after] = [first, second].map((words) => new Map(words.map((word) => [name(word), word])));
  const listed = new Set([first, second].flatMap((words) => words.slice(0, PAIRS).map(name)));
  return rankPairs([...listed].map((text) => {
    const p = before.get(text), q = after.get(text);
    return { ...pairOf(text, p?.probability ?? 0, q?.probability ?? 0), place: (p ?? q).place };
  }));
}

// The words that were found; if there are none yet, tokens in their place.
const wordsOr = (words, tokens) => (words.length ? words : tokens.map((token) => ({ ...shownToken(token), place: token })));

// Switches parts off, and all others on, and forgets the text if that changes anything; "cache" is the n-gram cache.
function switchOff(runtime, names) {
  if ([...runtime.model.without].join() === names.join()) return;
  runtime.rewind();
  runtime.model.switchOff(names);
  runtime.cache = names.includes("cache") ? null : runtime.newCache();
}
