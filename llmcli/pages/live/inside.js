// What happens inside a prediction: what the model would predict after each layer, what each head attends to, and what each part and
// each token contributes. The figures are those of `llm explain`.
const MAX_RECORDED = 256; // the last tokens of a text, whose attention is kept
const MAX_HIDING_WORK = 4e9; // parameters x tokens that are processed while tokens are hidden: some seconds

const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
const byProbability = (probabilities) => [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);

// A network without its n-gram cache, and its activations.
class Recording extends Runtime {
  constructor(model) {
    super(model, null);
    this.weights = []; // of each token in the KV cache: [L][H][tokens so far]
    this.first = 0; // the first token whose attention is kept
  }

  // Processes a text, of which the beginning may be known.
  async record(ids, check) {
    this.first = Math.max(0, ids.length - MAX_RECORDED);
    for (let i = this.weights.length = this.reuse(ids); i < ids.length; i++) {
      await check();
      this.model.step(ids[i], false);
      this.ids.push(ids[i]);
      const { weights } = this.model.activations;
      this.weights.push(weights.map((heads) => heads.map((row) => Float32Array.from(row))));
    }
    this.weights.fill(null, 0, this.first);
  }

  // The weights of a token, [L][H]. Positions count from the first token whose attention is kept.
  attention(position) {
    const layers = this.weights[this.first + position] ?? [];
    return layers.map((heads) => heads.map((weights) => weights.subarray(this.first)));
  }

  // The logit lens: the most likely next tokens if no layer followed, after 0, 1, ... L layers; only those that `fits` accepts.
  lens(fits) {
    return this.model.activations.residuals.map((x) => {
      const probabilities = fittingProbabilities(this.model.logits(x), fits);
      return byProbability(probabilities).slice(0, LENS_TOKENS).map((id) => ({ label: tokenizer.label(id), probability: probabilities[id] }));
    });
  }

  // Direct logit attribution: what the embedding, each head [L][H] and each MLP [L] adds to the logit of a token, which is
  // their sum.
  attribution(token) {
    const { model } = this, { num_attention_heads: H, head_dim: D } = model.config;
    const { residuals, outputs } = model.activations, direction = model.logitDirection(residuals.at(-1), token);
    const streams = residuals.map((x) => dot(x, direction));
    const heads = model.layers.map(({ o }, layer) => Array.from({ length: H }, (_, head) => {
      const y = new Float32Array(H * D), own = head * D;
      if (outputs[layer]) y.set(outputs[layer].subarray(own, own + D), own);
      return dot(multiply({ ...o, bias: null }, y), direction);
    }));
    const mlp = heads.map((row, layer) => streams[layer + 1] - streams[layer] - row.reduce((a, b) => a + b));
    const { bias } = model.norm; // of the last norm
    return { embedding: streams[0] + (bias ? dot(rowOf(model.head, token), bias) : 0), heads, mlp };
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
function pairs(first, second, isEnd) {
  const name = ({ text, continues }) => (continues ? "…" : "") + text;
  const [before, after] = [first, second].map((words) => new Map(words.map((word) => [name(word), word])));
  const listed = new Set([first, second].flatMap((words) => words.slice(0, PAIRS).map(name)));
  return rankPairs([...listed].map((text) => {
    const p = before.get(text), q = after.get(text);
    return { ...pairOf(text, p?.probability ?? 0, q?.probability ?? 0), place: (p ?? q).place };
  }), isEnd);
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
