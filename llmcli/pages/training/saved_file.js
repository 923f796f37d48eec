// What a browser trained, as the data of a page and as model.safetensors.
const number = (count) => (count < 1000 ? `${count}` : count < 1e6 ? `${(count / 1e3).toFixed(1)} k` : `${(count / 1e6).toFixed(2)} M`);

// SHA-256 (FIPS 180-4) of bytes, in hexadecimal. The browser's own is missing in pages that come over http.
function sha256(bytes) {
  const primes = [], fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
  for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
  const constants = primes.map((prime) => fraction(Math.cbrt(prime))), state = Uint32Array.from(primes.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));
  const padded = new Uint8Array(64 * Math.ceil((bytes.length + 9) / 64)), view = new DataView(padded.buffer), words = new Uint32Array(64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  view.setBigUint64(padded.length - 8, BigInt(8 * bytes.length));
  const turn = (x, ...counts) => counts.reduce((all, count) => all ^ ((x >>> count) | (x << (32 - count))), 0);
  for (let start = 0; start < padded.length; start += 64) {
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      words[i] = i < 16 ? view.getUint32(start + 4 * i)
        : words[i - 16] + (turn(words[i - 15], 7, 18) ^ (words[i - 15] >>> 3)) + words[i - 7] + (turn(words[i - 2], 17, 19) ^ (words[i - 2] >>> 10));
      const first = h + turn(e, 6, 11, 25) + ((e & f) ^ (~e & g)) + constants[i] + words[i];
      const second = turn(a, 2, 13, 22) + ((a & b) ^ (a & c) ^ (b & c));
      [a, b, c, d, e, f, g, h] = [(first + second) | 0, a, b, c, (d + first) | 0, e, f, g];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => { state[i] += value; });
  }
  return Array.from(state, (value) => value.toString(16).padStart(8, "0")).join("");
}

// What the page shows of the model; `run` is a Run of trainer.js.
function pageData({ network, corpus, curve, step, seconds, validation, shape }) {
  const { facts } = corpus;
  const weights = network.arrays.weights.slice(), { config } = network, parameters = number(weights.length);
  const tensors = [...network.tensors.values()].map(({ name, shape, start }) => ({ name, shape, dtype: "f32", offset: 4 * start }));
  const prompt = corpus.start.split(/\s/).slice(0, 3).join(" ").slice(0, 40), bits = validation?.toFixed(3);
  const count = (amount, name) => `${amount.toLocaleString("en")} ${name}${amount === 1 ? "" : "s"}`;
  const rows = [ // as record_rows of model_facts.py has them
    ["form", "a model trained in a browser"], ["corpus", `${facts.name}, ${count(facts.bytes, "byte")}`],
    ["sha256 of the corpus", facts.sha256], ["tokenizer", `${corpus.data.kind}, ${count(facts.vocabulary, "token")}`],
    ["model size", count(weights.length, "parameter")],
    ["architecture", `${count(shape.layers, "layer")}, hidden size ${shape.width}, ${count(shape.heads, "head")}`],
    ["steps", step.toLocaleString("en")], ["time", `${seconds.toFixed(0)}s`], ...(bits ? [["held-out", `${bits} bits per byte`]] : []),
  ];
  const summary = curve.training.length ? `The training loss went from ${curve.training[0].toFixed(3)} to ${curve.training.at(-1).toFixed(3)} bits per byte by step ${step.toLocaleString("en")}.` : "";
  const data = {
    config: { ...config, parameters: weights.length }, tensors, tokenizer: corpus.data, ngram_cache: null, chat: null, dtype: "f32", planted: {}, parameters,
    record: { rows, plan: [], verdict: [], probe: null, samples: [], prompt: "", curve: curve.training.length ? { ...curve, label: "held-out", summary } : null },
    examples: { prompts: [prompt], questions: [] }, start: { view: "write", text: prompt, compare: "", without: [] },
  };
  return { data, weights: weights.buffer };
}

// The bytes of model.safetensors: a header in JSON, and the weights. The hash in it is of the file with zeros in its place.
function modelFile({ network, corpus, curve, step, seconds, share, validation, tokensPerSecond, shape, recipe }, { config_json, tokenizer_config_json, version }, probe) {
  const { config } = network, bitsToNats = corpus.bytesPerToken * Math.LN2;
  const { name, bytes, sha256: hashOfText, encoding, tokens, heldOutBytes } = corpus.facts;
  const trainBytes = bytes - heldOutBytes;
  const heldOut = { bytes: heldOutBytes, tokens: corpus.heldOutTokens.length - 1 };
  const record = {
    corpus: [{ name, bytes, sha256: hashOfText, held_out: heldOutBytes, ...(encoding === "utf-8" ? {} : { encoding }) }],
    train_bytes: trainBytes, read_bytes: trainBytes, train_tokens: tokens,
    held_out: { ...heldOut, from: "the last tenth of the text" },
    seen_bytes: corpus.data.seen_bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(""),
    versions: { llmcli: version },
    train: { steps: step, seconds, context: config.max_position_embeddings, recipe: "muon", device: "browser", dtype: "float32" },
    steps: step, epochs: (step * recipe.batch_tokens) / tokens, interrupted: share < 1,
    ...(validation === null ? {} : { bits_per_byte: validation, held_out_measured: heldOut }),
    clock: { seconds, tokens_per_second: Math.round(tokensPerSecond) },
    curve: { step: curve.steps, loss: curve.training.map((bits) => bits * bitsToNats), eval_step: curve.validation_steps, eval_bits_per_byte: curve.validation },
    ...(probe ? { probe: { prompt: probe.prompt, predictions: probe.points.map(([at, , likeliest]) => [at, likeliest]) } } : {}),
    verdict: [`Trained in a browser, for ${step.toLocaleString("en")} steps.`],
  };
  const values = { ...config, torch_dtype: "float32", max_window_layers: shape.layers };
  const configJson = Object.fromEntries(Object.entries(config_json).map(([key, value]) => [key, values[key] ?? value]));
  const metadata = {
    "config.json": JSON.stringify(configJson), format: "pt", llmcli: "1", sha256: "0".repeat(64), "tokenizer.json": corpus.tokenizerJson,
    "tokenizer_config.json": JSON.stringify({ ...tokenizer_config_json, model_max_length: config.max_position_embeddings }), "training.json": JSON.stringify(record),
  };
  const entries = [...network.tensors.values()].map(({ name, shape, start, data }) => [name, { dtype: "F32", shape, data_offsets: [4 * start, 4 * (start + data.length)] }]);
  const encode = (text) => new TextEncoder().encode(text), text = JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(entries) });
  const { buffer, byteOffset, byteLength } = network.arrays.weights, header = encode(text);
  const size = Math.ceil(header.length / 8) * 8, file = new Uint8Array(8 + size + byteLength).fill(32);
  new DataView(file.buffer).setBigUint64(0, BigInt(size), true);
  file.set(header, 8);
  file.set(new Uint8Array(buffer, byteOffset, byteLength), 8 + size);
  const hash = encode(sha256(file)), field = '"sha256":"', before = text.slice(0, text.indexOf(`${field}0000`) + field.length);
  file.set(hash, 8 + encode(before).length);
  return file.buffer;
}
