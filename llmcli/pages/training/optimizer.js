// The optimizer of llmcli: Muon (Jordan et al. 2024) for the matrices in the layers, AdamW (arXiv:1711.05101) for embeddings,
// output embedding and gains. The numbers are those of the recipe in llmcli, which are in the data of the page.

// Fresh weights: embeddings normal with standard deviation 1, or 0.02 if tied; gains 1; the output embedding and matrices that
// write into the residual stream 0; other matrices uniform with variance 1 / (3 * inputs). `random` is from 0 to 1.
function initialize(network, random) {
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  for (const { name, shape, data } of network.tensors.values()) {
    const deviation = network.config.tie_word_embeddings ? 0.02 : 1, bound = 1 / Math.sqrt(shape.at(-1));
    const value = name.includes("embed_tokens") ? () => deviation * normal()
      : shape.length === 1 ? () => 1
        : /(o_proj|down_proj|lm_head)\.weight$/.test(name) ? () => 0
          : () => (2 * random() - 1) * bound;
    for (let i = 0; i < data.length; i++) data[i] = value();
  }
}

class Optimizer {
  constructor(network, recipe) {
    Object.assign(this, { network, recipe, step: 0 });
    this.parts = [...network.tensors.values()].map((tensor) => {
      const kind = tensor.name.includes("embed_tokens") ? (network.config.tie_word_embeddings ? "head" : "embedding")
        : tensor.name === "lm_head.weight" ? "head" : tensor.shape.length > 1 ? "matrices" : "gains";
      return { ...tensor, kind, average: new Float32Array(tensor.data.length), squares: new Float32Array(kind === "matrices" ? 0 : tensor.data.length) };
    });
    const largest = Math.max(...this.parts.map(({ kind, data }) => (kind === "matrices" ? data.length : 0)));
    const side = Math.max(...this.parts.map(({ kind, shape }) => (kind === "matrices" ? Math.min(...shape) : 0)));
    this.arrays = new Arrays({ x: largest, transposed: largest, next: largest, A: side * side, B: side * side });
  }

  // Updates the weights with their gradients. `progress` is from 0 to 1 of the run; `scale` multiplies the learning rates.
  update(progress, scale = 1) {
    const { warmup, initial_rate, decay, final_rate, momentum, momentum_rise, momentum_warmup, rates, weight_decay } = this.recipe;
    const rate = scale * (progress < warmup ? initial_rate + ((1 - initial_rate) * progress) / warmup
      : progress <= 1 - decay ? 1 : final_rate + ((1 - final_rate) * Math.max(0, 1 - progress)) / decay);
    const inertia = momentum + momentum_rise * Math.min(1, progress / momentum_warmup);
    this.step++;
    for (const part of this.parts) {
      if (part.kind === "matrices") this.muon(part, rates.matrices * rate, inertia, weight_decay);
      else this.adamw(part, rates[part.kind] * rate);
    }
    this.network.changed();
  }

  adamw({ data, gradient, average, squares }, rate) {
    const { adamw_betas: [beta1, beta2], adamw_epsilon: epsilon } = this.recipe;
    const first = 1 - beta1 ** this.step, second = 1 - beta2 ** this.step;
    for (let i = 0; i < data.length; i++) {
      const g = gradient[i];
      average[i] += (1 - beta1) * (g - average[i]);
      squares[i] += (1 - beta2) * (g * g - squares[i]);
      data[i] -= (rate * (average[i] / first)) / (Math.sqrt(squares[i] / second) + epsilon);
    }
  }

  muon({ shape: [rows, columns], data, gradient, average }, rate, momentum, decay) {
    const { x } = this.arrays, isTall = rows > columns;
    let squares = 0;
    for (let i = 0; i < data.length; i++) {
      average[i] += (1 - momentum) * (gradient[i] - average[i]);
      gradient[i] += momentum * (average[i] - gradient[i]); // Nesterov momentum
      squares += gradient[i] * gradient[i];
    }
    if (isTall) transpose(x, gradient, rows, columns);
    else x.set(gradient);
    const norm = Math.sqrt(squares) * 1.01 + 1e-7, own = rate * Math.sqrt(Math.max(1, rows / columns));
    for (let i = 0; i < data.length; i++) x[i] /= norm;
    this.orthogonalize(Math.min(rows, columns), Math.max(rows, columns));
    const direction = isTall ? this.arrays.next : x;
    if (isTall) transpose(direction, x, columns, rows);
    for (let i = 0; i < data.length; i++) data[i] = data[i] * (1 - rate * decay) - own * direction[i];
  }

  // Brings the singular values of x [m, n] close to 1: x <- a x + (b A + c A A) x with A = x x', arXiv:2505.16932.
  orthogonalize(m, n) {
    const { x, transposed, next, A, B } = this.arrays;
    for (const [a, b, c] of this.recipe.polar_express) {
      transpose(transposed, x, m, n);
      this.arrays.multiply(A, x, transposed, m, m, n);
      this.arrays.multiply(B, A, A, m, m, m);
      for (let i = 0; i < m * m; i++) B[i] = b * A[i] + c * B[i];
      this.arrays.multiply(next, B, x, m, n, m);
      for (let i = 0; i < m * n; i++) x[i] = a * x[i] + next[i];
    }
  }
}
