// Training in this worker, and in others that compute the gradients of some windows of each batch. Requests, beside those of worker.js:
//   prepare {bytes, name, kind, training} -> {facts, shapes, plan}: a text, and the model that suits it; `training` is in the data of the page
//   train {shape, seconds, rate, ports} -> {progress}, {model}, ...: the last text; `ports` lead to other workers
//   pause, resume; save {probe} -> {file}: model.safetensors
//   assist {port}: be one of those other workers
const SHAPES = [[1, 32], [1, 48], [1, 64], [2, 64], [2, 96], [2, 128]]; // layers x hidden size
const SHAPE_BYTES = [10_000, 40_000, 80_000, 200_000, 500_000]; // a longer text gets the next shape
const SECONDS = [10, 60], SECONDS_STEP = 10; // minimum and maximum of the plan, and the step of its slider
const PROGRESS_SECONDS = 0.25, MODEL_SECONDS = 1;
const INTERIM_TOKENS = 4096; // of the held-out text, in an evaluation during the run
const PAUSE_MILLISECONDS = 50; // between two looks whether training goes on
const MAX_POINTS = 300; // of the curve

let corpus = null, training = null; // the last text; the last run
let templates = null; // `training` in the data of the page

function configOf({ layers, width, heads, context }, vocabulary, { rope_theta, rms_norm_eps }) {
  const D = width / heads;
  return {
    vocab_size: vocabulary, hidden_size: width, intermediate_size: Math.max(32, Math.round(width / 12) * 32), num_hidden_layers: layers, num_attention_heads: heads,
    num_key_value_heads: heads, head_dim: D, max_position_embeddings: context, rms_norm_eps, rope_theta, hidden_act: "silu", num_experts: 0, tie_word_embeddings: false,
    no_rope_layers: [], use_parallel_residual: false,
    rope_frequencies: Array.from({ length: D / 2 }, (_, i) => rope_theta ** ((-2 * i) / D)),
  };
}

// One batch's loss in nats, summed over its windows; the gradients of the mean over `total` tokens are in `network`.
function computeGradients(network, { inputs, targets, T, dropout }, total) {
  network.arrays.gradients.fill(0);
  if (!inputs.length) return 0;
  network.forward(inputs, T, dropout);
  const loss = network.crossEntropy(targets, total);
  network.backward();
  return loss;
}

class Run {
  // Of `shape`, for `seconds` of computing (or a number of `steps`), with learning rates that are `rate` times those of the recipe.
  constructor(corpus, shape, { seconds, steps = null, rate = 1, ports = [], seed = 1 }, recipe) {
    Object.assign(this, { corpus, shape, limit: seconds, steps, rate, step: 0, seconds: 0, validation: null, tokensPerSecond: 0 });
    const random = randomNumbers(seed);
    this.batchBlocks = Math.max(1, Math.round(recipe.batch_tokens / shape.context));
    this.network = new Network(configOf(shape, corpus.data.tokens.length, recipe), this.batchBlocks * shape.context, shape.context, random);
    initialize(this.network, random);
    this.network.changed();
    this.optimizer = new Optimizer(this.network, recipe);
    this.batches = new Batches(corpus, shape.context, random);
    this.recipe = recipe;
    this.curve = { steps: [], training: [], validation_steps: [], validation: [] };
    this.losses = []; // since the last point of the curve, in bits per byte
    this.ports = ports;
    for (const port of ports) port.postMessage({ config: this.network.config, tokens: this.batchBlocks * shape.context, window: shape.context });
  }

  get share() { return Math.min(1, this.steps === null ? this.seconds / this.limit : this.step / this.steps); }

  // The rates of dropout and BPE-dropout for as many epochs as the run will have at its present speed.
  regularization() {
    const { share, recipe, corpus: { tokens } } = this, epochs = (this.step * recipe.batch_tokens) / tokens.length / (share || 1);
    const rateOf = (table) => table.find(([most]) => most === null || epochs <= most)[1];
    return { dropout: rateOf(recipe.dropout), split: share < recipe.bpe_dropout_until ? rateOf(recipe.bpe_dropout) : 0 };
  }

  // A step of the optimizer; each worker computes its part of the windows.
  async next() {
    const began = performance.now(), { network, share, ports, recipe, shape: { context } } = this, blocks = this.batchBlocks, workers = ports.length + 1;
    const factor = recipe.length_warmup.find(([end]) => share < end)?.[1] ?? 1, T = context % factor ? context : context / factor;
    const { dropout, split } = this.regularization(), { inputs, targets } = this.batches.next(blocks, T, split), total = inputs.length;
    const part = (worker) => {
      const [first, last] = [worker, worker + 1].map((n) => Math.floor((n * blocks) / workers) * context);
      return { inputs: inputs.slice(first, last), targets: targets.slice(first, last), T, dropout };
    };
    const answers = ports.map((port, i) => new Promise((resolve) => {
      port.onmessage = ({ data }) => resolve(data);
      port.postMessage({ weights: network.arrays.weights.slice(), batch: part(i + 1), total });
    }));
    let loss = computeGradients(network, part(0), total);
    for (const answer of answers) {
      const { gradients, loss: added } = await answer, own = network.arrays.gradients;
      loss += added;
      for (let i = 0; i < own.length; i++) own[i] += gradients[i];
    }
    this.optimizer.update(share, this.rate);
    this.step++;
    const seconds = (performance.now() - began) / 1000;
    this.seconds += seconds;
    this.tokensPerSecond += (total / seconds - this.tokensPerSecond) / Math.min(this.step, 10);
    this.losses.push(loss / total / Math.LN2 / this.corpus.bytesPerToken);
  }

  // Measures all of the held-out text, so that its loss is that of the weights that are shown or saved.
  measure() {
    if (this.measured !== this.step) this.evaluate(Infinity);
    this.measured = this.step;
  }

  // Adds a point to the curve: the mean training loss since the last one, and the loss of the held-out text.
  evaluate(maxTokens) {
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length, { curve } = this;
    if (this.losses.length) {
      curve.steps.push(this.step);
      curve.training.push(mean(this.losses));
      this.losses = [];
    }
    this.validation = this.heldOutLoss(maxTokens);
    if (curve.validation_steps.at(-1) === this.step) for (const values of [curve.validation_steps, curve.validation]) values.pop();
    curve.validation_steps.push(this.step);
    curve.validation.push(this.validation);
    if (curve.steps.length <= MAX_POINTS) return;
    for (const [name, values] of Object.entries(curve)) curve[name] = values.filter((_, i) => (values.length - i) % 2); // every second one, and the last
  }

  // Bits per byte of the beginning of the held-out text: in windows that overlap by half, as `llm eval` has them.
  heldOutLoss(maxTokens) {
    const { network, shape: { context }, corpus: { heldOutTokens: ids, lengths } } = this, count = Math.min(ids.length, maxTokens + 1);
    const stride = Math.max(1, Math.floor(context / 2));
    let nats = 0, bytes = 0;
    for (let counted = 1, end; counted < count; counted = end) {
      end = Math.min(count, counted + (counted === 1 ? context : stride));
      const start = Math.max(0, end - context - 1), targets = ids.subarray(start + 1, end);
      network.forward(ids.subarray(start, end - 1), end - 1 - start);
      nats += network.crossEntropy(targets, 1, (row) => start + 1 + row >= counted);
      for (let i = counted; i < end; i++) bytes += lengths[ids[i]];
    }
    return nats / Math.LN2 / bytes;
  }
}

// The shape for a text of this size, and why.
function planOf({ size, tokens }, { context }) {
  const largest = SHAPE_BYTES.findIndex((bytes) => size <= bytes), [layers, width] = SHAPES[largest < 0 ? SHAPES.length - 1 : largest];
  return { ...shapeOf([layers, width], tokens.length, context), reason: ["planReason", { layers, width, size }] };
}
const shapeOf = ([layers, width], tokens, longest) => ({ layers, width, heads: width / (width % 32 ? 16 : 32), context: Math.min(longest, 2 ** Math.floor(Math.log2(tokens / 2))) });

Object.assign(jobs, {
  async *prepare({ bytes, name, kind, training: all }) {
    templates = all;
    corpus = new Corpus(new Uint8Array(bytes), name, kind, templates);
    corpus.bytesPerToken = (corpus.size - corpus.heldOutBytes) / corpus.tokens.length;
    const { recipe } = templates, plan = planOf(corpus, recipe), trial = new Run(corpus, plan, { steps: 4 }, recipe);
    while (trial.share < 1) await trial.next(); // the first steps are slow
    const seconds = (recipe.max_epochs * corpus.tokens.length) / trial.tokensPerSecond;
    yield {
      facts: { name, bytes: corpus.size, characters: corpus.characters, sha256: corpus.sha256, encoding: corpus.encoding, tokens: corpus.tokens.length,
        vocabulary: corpus.data.tokens.length, heldOutBytes: corpus.heldOutBytes },
      shapes: SHAPES.map((shape) => shapeOf(shape, corpus.tokens.length, recipe.context)),
      plan: { ...plan, rate: 1, seconds: SECONDS_STEP * Math.round(Math.min(SECONDS[1], Math.max(SECONDS[0], seconds)) / SECONDS_STEP) },
    };
  },

  async *train({ shape, ...settings }, check) {
    training = new Run(corpus, shape ?? planOf(corpus, templates.recipe), settings, templates.recipe);
    let shown = -Infinity, sent = -Infinity;
    while (training.share < 1) {
      await check();
      if (training.isPaused && training.step) {
        training.measure();
        yield { progress: progressOf(training) };
        yield { model: pageData(training) };
      }
      while (training.isPaused && training.step) {
        await new Promise((resolve) => { setTimeout(resolve, PAUSE_MILLISECONDS); });
        await check();
      }
      await training.next();
      const isDue = training.seconds - sent >= MODEL_SECONDS || training.step === 1;
      if (isDue || training.seconds - shown >= PROGRESS_SECONDS) {
        if (isDue) training.evaluate(INTERIM_TOKENS);
        shown = training.seconds;
        yield { progress: progressOf(training) };
      }
      if (isDue) {
        sent = training.seconds;
        yield { model: pageData(training) };
      }
    }
    training.measure();
    yield { progress: progressOf(training) };
    yield { model: pageData(training) };
  },
});
const progressOf = ({ step, seconds, share, tokensPerSecond, curve, losses, validation }) => ({
  step, seconds, share, tokensPerSecond, training: losses.at(-1) ?? curve.training.at(-1), validation,
});

Object.assign(atOnce, {
  pause() { training.isPaused = true; },
  resume() { training.isPaused = false; },
  save({ probe }) {
    training.measure();
    return { file: modelFile(training, templates, probe) };
  },
  assist({ port }) {
    let network;
    port.onmessage = ({ data: { config, tokens, window, weights, batch, total } }) => {
      if (config) {
        network = new Network(config, tokens, window);
        return;
      }
      network.arrays.weights.set(weights);
      network.changed();
      const loss = computeGradients(network, batch, total), gradients = network.arrays.gradients.slice();
      port.postMessage({ gradients, loss }, [gradients.buffer]);
    };
  },
});
