"""The fields of a GGUF, omitted or changed: the next token is that of llama.cpp, or the file is an error."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.gguf import writer as gguf_writer
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import random_checkpoint
from tests.platforms import FULL

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
KINDS: dict[str, dict[str, Any]] = {"llama": {}, "mixtral": EXPERTS, "qwen2": {}, "qwen3": {}, "qwen3_moe": EXPERTS}
PROMPT = 30  # tokens
OMITTED = None
# (fields without the name of the architecture, whether they change the result of llama.cpp)
CASES: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"rope.scaling.factor": 4.0}, True),  # linear by default
    ({"rope.scale_linear": 4.0}, True),  # the old name
    ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, True),
    ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, False),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, True),
    ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, True),
    ({"rope.scaling.type": "linear"}, False),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, False),
    ({"rope.freq_base": 100.0}, True),
    ({"rope.freq_base": OMITTED}, False),  # 10,000
    ({"rope.dimension_count": OMITTED, "attention.key_length": OMITTED, "attention.value_length": OMITTED}, False),
    ({"attention.layer_norm_rms_epsilon": 0.1}, True),
    ({"split.count": ("UINT16", 1)}, False),
    ({"general.type": OMITTED}, False),
]


def rewritten(source: Path, target: Path, change: dict[str, Any]) -> Path:
    """The same file with fields changed or omitted."""
    import gguf

    reader = gguf.GGUFReader(source)
    kind = reader.fields["general.architecture"].contents()
    change = {key if key.partition(".")[0] in ("general", "split") else f"{kind}.{key}": v for key, v in change.items()}
    writer = gguf.GGUFWriter(target, kind)
    types = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in change:
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in change.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not OMITTED:
            name, value = value if isinstance(value, tuple) else (types[type(value)], value)
            writer.add_key_value(key, value, getattr(gguf.GGUFValueType, name))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module", params=list(KINDS) if FULL else ["llama", "qwen3_moe"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat " * 50], 280)
    config = ModelConfig(
        tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 64, model_type=request.param, **KINDS[request.param]
    )
    path = tmp_path_factory.mktemp(request.param) / "base.gguf"
    gguf_writer.write(path, random_checkpoint(config, tokenizer_json=tokenizer.to_json()), "f32", {"type": "model"})
    return path


IDS = np.random.default_rng(1).integers(2, 257, 2 * PROMPT).tolist()


def next_token_logprobs(path: Path) -> tuple[dict[int, float], dict[int, float]]:
    """The log probabilities of the five most likely next tokens in llama.cpp: (those of llama.cpp, ours)."""
    from tests.ecosystem.conftest import LlamaCpp

    theirs = LlamaCpp(path)
    for start in range(PROMPT):  # llama.cpp reports no token that ends the text or is part of a character
        ids = IDS[start : start + PROMPT]
        if result := theirs.chosen(ids, 1):
            break
    logits = NumpyRuntime(loading.load(path)).prefill(ids)
    own = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    expected = {entry["id"]: float(entry["logprob"]) for entry in result[0]["top_logprobs"]}
    return expected, {token: float(own[token]) for token in expected}


def test_each_field_has_the_effect_of_llama_cpp(base: Path, tmp_path: Path) -> None:
    plain, _ = next_token_logprobs(base)
    for number, (change, changes) in enumerate(CASES):
        theirs, own = next_token_logprobs(rewritten(base, tmp_path / f"{number}.gguf", change))
        assert own == pytest.approx(theirs, abs=1e-3), change
        assert (theirs != pytest.approx(plain, abs=1e-3)) == changes, change


def keys_of(group: Any) -> list[str]:
    """All fields of an architecture that the gguf package knows."""
    result = []
    for name, value in vars(group).items():
        if isinstance(value, type):
            result += keys_of(value)
        elif isinstance(value, str) and not name.startswith("__") and re.fullmatch(r"\{arch\}\.[^{]*", value):
            result.append(value.removeprefix("{arch}."))
    return result


def test_every_other_field_is_an_error_or_changes_nothing(base: Path, tmp_path: Path) -> None:
    """Each alone is an error here or not; those that are not are passed to llama.cpp, all together."""
    import gguf

    own = {key.partition(".")[2] for key in gguf.GGUFReader(base).fields}
    passed: dict[str, Any] = {}
    for key in dict.fromkeys(keys_of(gguf.Keys)):
        if key in own or key.startswith(("rope.scaling.factor", "rope.scaling.type", "attention.sliding_window")):
            continue
        value = {"tensor_data_layout": "x", "rope.scaling.finetuned": True}.get(key, 3)
        try:
            loading.load(rewritten(base, tmp_path / "one.gguf", {key: value}))
        except LLMError as error:
            assert key in str(error) or key == "expert_count"
        else:
            passed[key] = value
    refused = {"logit_scale", "attention.causal", "attention.scale", "final_logit_softcapping", "rope.scaling.alpha"}
    assert not refused & passed.keys() and "pooling_type" in passed
    for key in ("expert_used_count", "expert_group_count"):  # llama.cpp aborts the process if a model has no experts
        passed.pop(key, None)
    theirs, result = next_token_logprobs(rewritten(base, tmp_path / "all.gguf", passed))
    assert result == pytest.approx(theirs, abs=1e-3)
    assert theirs == pytest.approx(next_token_logprobs(base)[0], abs=1e-3)


def test_a_sliding_window_changes_nothing_within_it(base: Path, tmp_path: Path) -> None:
    for sizes in [{"attention.sliding_window": 8}, {"attention.sliding_window": 0}]:
        model = loading.load(rewritten(base, tmp_path / "m.gguf", sizes))
        assert model.config.max_position_embeddings == (sizes["attention.sliding_window"] or 64), sizes
        np.testing.assert_array_equal(
            NumpyRuntime(model).prefill(IDS[:8]), NumpyRuntime(loading.load(base)).prefill(IDS[:8])
        )
