// Training in this worker, and in others that compute the gradients of some windows of each batch. Requests, beside those of worker.js:
//   prepare {bytes, name, kind, training} -> {facts, shapes, planned, seconds}: a text, possible shapes of a model, and
//     the plan: the number of one, and seconds; `training` is in the data of the page
//   train {shape, seconds, rate, helpers, program} -> {progress, model}, ...: the last text; with so many other workers
//   pause, resume; save {probe} -> {file}: model.safetensors
//   assist {config, tokens, window, weights, batch, total} -> {gradients, loss}: what such another worker is asked
const SHAPES = [[1, 32], [1, 48], [1, 64], [2, 64], [2, 96], [2, 128]]; // layers x hidden size
const SHAPE_BYTES = [10_000, 40_000, 80_000, 200_000, 500_000]; // a longer text gets the next shape
const SECONDS = [10, 60], SECONDS_STEP = 10; // minimum and maximum of the plan, and the step of its slider
const PROGRESS_SECONDS = 0.25, MODEL_SECONDS = 1;
const INTERIM_TOKENS = 4096; // of the held-out text, in an evaluation during the run

let corpus = null, training = null; // the last text; the last run
let assisted = null; // the network of a worker that helps
let templates = null; // `training` in the data of the page

function configOf({ layers, width, heads, context }, vocabulary, { rope_theta, rms_norm_eps }) {
  const D = width / heads;
  return {
    vocab_size: vocabulary, hidden_size: width, intermediate_size: Math.max(32, Math.round(width / 12) * 32),
    num_hidden_layers: layers, num_attention_heads: heads, num_key_value_heads: heads, head_dim: D,
    max_position_embeddings: context, hidden_act: "silu", rms_norm_eps, rope_theta,
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
  constructor(corpus, shape, { seconds, steps = null, rate = 1, helpers = [], random = Math.random }, recipe) {
    Object.assign(this, { corpus, shape, limit: seconds, steps, rate, helpers, recipe });
    Object.assign(this, { step: 0, seconds: 0, validation: null, tokensPerSecond: 0, pause: null });
    this.batchBlocks = Math.max(1, Math.round(recipe.batch_tokens / shape.context));
    this.network = new Network(configOf(shape, corpus.data.tokens.length, recipe), this.batchBlocks * shape.context, shape.context, random);
    initialize(this.network, random);
    this.network.changed();
    this.optimizer = new Optimizer(this.network, recipe);
    this.batches = new Batches(corpus, shape.context, random);
    this.curve = { steps: [], training: [], validation_steps: [], validation: [] };
    this.losses = []; // since the last point of the curve, in bits per byte
  }

  get share() { return Math.min(1, this.steps === null ? this.seconds / this.limit : this.step / this.steps); }

  // The rates of dropout and BPE-dropout for as many epochs as the run will have at its present speed.
  regularization() {
    const { share, recipe, corpus: { tokens, hasFewWords } } = this;
    const epochs = (this.step * recipe.batch_tokens) / tokens.length / (share || 1);
    const rateOf = (table) => table.find(([most]) => epochs <= most)[1];
    if (hasFewWords) return { dropout: rateOf(recipe.few_words_dropout), split: 0 };
    return { dropout: rateOf(recipe.dropout), split: share < recipe.bpe_dropout_until ? rateOf(recipe.bpe_dropout) : 0 };
  }

  // A step of the optimizer; each worker computes its part of the windows.
  async next() {
    const began = performance.now(), { network, share, helpers, recipe, shape: { context } } = this;
    const blocks = this.batchBlocks, workers = helpers.length + 1;
    const factor = recipe.length_warmup.find(([end]) => share < end)?.[1] ?? 1, T = context % factor ? context : context / factor;
    const { dropout, split } = this.regularization(), { inputs, targets } = this.batches.next(blocks, T, split), total = inputs.length;
    const part = (worker) => {
      const [first, last] = [worker, worker + 1].map((n) => Math.floor((n * blocks) / workers) * context);
      return { inputs: inputs.slice(first, last), targets: targets.slice(first, last), T, dropout };
    };
    const request = {
      type: "assist", config: network.config, tokens: blocks * context, window: context, total,
      weights: network.arrays.weights.slice(),
    };
    const answers = helpers.map((helper, i) => new Promise((resolve, reject) => {
      helper.onmessage = ({ data }) => (data.error ? reject(new Error(data.error[1].error)) : resolve(data));
      helper.postMessage({ ...request, batch: part(i + 1) });
    }));
    let loss = computeGradients(network, part(0), total);
    for (const { gradients, loss: added } of await Promise.all(answers)) {
      loss += added;
      add(network.arrays.gradients, gradients);
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

Object.assign(jobs, {
  async *prepare({ bytes, name, kind, training: all }) {
    templates = all;
    corpus = new Corpus(new Uint8Array(bytes), name, kind, templates);
    const { recipe } = templates, { bytes: size, tokens } = corpus.facts;
    const context = Math.min(recipe.short_context, 2 ** Math.floor(Math.log2(tokens / 2)));
    const shapes = SHAPES.map(([layers, width]) => ({ layers, width, heads: width / (width % 32 ? 16 : 32), context }));
    const planned = SHAPE_BYTES.filter((bytes) => size > bytes).length;
    const trial = new Run(corpus, shapes[planned], { steps: 4 }, recipe);
    while (trial.share < 1) await trial.next(); // the first steps are slow
    const [least, most] = SECONDS, seconds = (recipe.max_epochs * tokens) / trial.tokensPerSecond;
    const rounded = SECONDS_STEP * Math.round(Math.min(most, Math.max(least, seconds)) / SECONDS_STEP);
    yield { facts: corpus.facts, shapes, planned, seconds: rounded };
  },

  async *train({ shape, helpers: count, program, ...settings }, check) {
    const helpers = Array.from({ length: count }, () => newWorker(program));
    training = new Run(corpus, shape, { ...settings, helpers }, templates.recipe);
    let shown = -Infinity, sent = -Infinity;
    while (training.share < 1) {
      await check();
      if (training.pause && training.step) {
        yield measured();
        await training.pause; // until `resume`
      }
      await training.next();
      if (training.seconds - shown < PROGRESS_SECONDS) continue;
      shown = training.seconds;
      const isDue = shown - sent >= MODEL_SECONDS;
      if (isDue) {
        training.evaluate(INTERIM_TOKENS);
        sent = shown;
      }
      yield { progress: progressOf(training), model: isDue ? pageData(training) : null };
    }
    for (const helper of helpers) helper.terminate();
    yield measured();
  },
});
// In a page from a file, a worker may not open the program that the page made for itself: it makes its own.
function newWorker(program) {
  return new Worker(URL.createObjectURL(new Blob([program], { type: "text/javascript" })));
}
const progressOf = ({ step, seconds, share, tokensPerSecond, curve, losses, validation }) => ({
  step, seconds, share, tokensPerSecond, training: losses.at(-1) ?? curve.training.at(-1), validation,
});
function measured() {
  training.measure();
  return { progress: progressOf(training), model: pageData(training) };
}

Object.assign(atOnce, {
  pause() { training.pause = new Promise((resolve) => { training.resume = resolve; }); },
  resume() {
    training.resume();
    training.pause = null;
  },
  save({ probe }) {
    training.measure();
    return { file: modelFile(training, templates, probe) };
  },
  assist({ config, tokens, window, weights, batch, total }) {
    assisted ??= new Network(config, tokens, window);
    assisted.arrays.weights.set(weights);
    assisted.changed();
    const loss = computeGradients(assisted, batch, total);
    return { gradients: assisted.arrays.gradients.slice(), loss };
  },
});
