"""A checkpoint in nanoGPT's layout, converted by examples/nanogpt_to_hf.py: the logits are those of its definition."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.formats import loading
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.ecosystem.conftest import tokenizer_with_pre_tokenizer

ROOT = Path(__file__).parent.parent.parent
C, F, V, CONTEXT = 32, 128, 448, 16  # a vocabulary that is padded, as nanoGPT's is


def weights(bias: bool) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte": (V, C), "transformer.wpe": (CONTEXT, C)}
    for i in range(2):
        layer = f"transformer.h.{i}."
        shapes |= {layer + "attn.c_attn": (3 * C, C), layer + "attn.c_proj": (C, C), layer + "mlp.c_fc": (F, C)}
        shapes |= {layer + "mlp.c_proj": (C, F), layer + "ln_1": (C,), layer + "ln_2": (C,)}
    shapes["transformer.ln_f"] = (C,)
    made = {f"{name}.weight": torch.randn(*shape) * 0.3 for name, shape in shapes.items()}
    with_bias = {name: shape for name, shape in shapes.items() if bias and not name.startswith("transformer.w")}
    made |= {f"{name}.bias": torch.randn(shape[0]) * 0.3 for name, shape in with_bias.items()}
    return made | {"lm_head.weight": made["transformer.wte.weight"]}


def logits(W: dict[str, Any], ids: list[int]) -> np.ndarray:
    from torch.nn import functional

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, W[f"{name}.weight"], W.get(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (C,), W[f"{name}.weight"], W.get(f"{name}.bias"), 1e-5)

    x = W["transformer.wte.weight"][ids] + W["transformer.wpe.weight"][: len(ids)]
    for layer in ("transformer.h.0.", "transformer.h.1."):
        heads = linear(norm(x, layer + "ln_1"), layer + "attn.c_attn").view(len(ids), 3, 2, C // 2)
        q, k, v = heads.permute(1, 2, 0, 3)[:, None]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1).reshape(len(ids), C)
        x = x + linear(y, layer + "attn.c_proj")
        x = x + linear(functional.gelu(linear(norm(x, layer + "ln_2"), layer + "mlp.c_fc")), layer + "mlp.c_proj")
    return np.asarray(linear(norm(x, "transformer.ln_f"), "lm_head").numpy())


def test_the_logits_of_a_converted_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    tokenizer = tokenizer_with_pre_tokenizer("GPT-2")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(tokenizer.to_config_json(CONTEXT), "utf-8")
    for bias in [True, False]:
        made = weights(bias)
        shape = {"n_layer": 2, "n_head": 2, "n_embd": C, "block_size": CONTEXT, "vocab_size": V, "dropout": 0.0}
        shape["bias"] = bias
        content = {"model_args": shape, "model": {f"_orig_mod.{name}": weight for name, weight in made.items()},
                   "optimizer": {"state": {}}, "iter_num": 5, "best_val_loss": torch.tensor(3.0)}  # fmt: skip
        torch.save(content, tmp_path / "ckpt.pt")
        files = [tmp_path / "ckpt.pt", tmp_path / f"hf-{bias}", tmp_path / "tokenizer"]
        monkeypatch.setattr(sys, "argv", ["nanogpt_to_hf.py", *map(str, files)])
        runpy.run_path(str(ROOT / "examples" / "nanogpt_to_hf.py"))
        ids = list(range(1, CONTEXT))
        np.testing.assert_allclose(
            NumpyRuntime(loading.load(tmp_path / f"hf-{bias}")).logits(ids), logits(made, ids), atol=1e-4
        )
