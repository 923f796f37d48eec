"""The model file: standard safetensors, round trips to the bit, and an error for everything else."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import checkpoint as module
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.formats.huggingface.config import dump_config
from llmcli.formats.loading import load
from llmcli.formats.safetensors.file import digest, read_values
from llmcli.formats.safetensors.header import read_header
from llmcli.formats.training_record import TrainingRecord
from tests.conftest import random_checkpoint
from tests.reliability.malformed import OTHERS, put
from tests.sample_models import parts

UNTIED = ModelConfig(11, 8, 12, 1, 4, 2, head_dim=6, max_position_embeddings=16)
TIED = ModelConfig(11, 8, 12, 1, 4, 2, 6, 16, tie_word_embeddings=True)
TOKENIZER = '{"model": "stands for a tokenizer", "é": "🍎"}'
METADATA = [
    "config.json", "format", "llmcli", "sha256", "tokenizer.json", "tokenizer_config.json", "training.json",
]  # fmt: skip


def model(config: ModelConfig = UNTIED, seed: int = 0) -> Checkpoint:
    result = random_checkpoint(config, seed, TOKENIZER)
    result.record = TrainingRecord.from_json({"steps": 7, "name": "りんご\n", "nested": {"a": [[1, 0.5], [2, 1e-9]]}})
    result.tokenizer_config_json = '{"eos_token": "<|endoftext|>"}'
    return result


def saved(config: ModelConfig = UNTIED, name: str = "m.safetensors") -> Path:
    save(name, model(config))
    return Path(name)


def with_metadata(**changes: str | None) -> Path:
    """A saved model without a hash, with parts of its metadata changed or removed (None)."""
    header, body = parts(saved())
    renamed = {"sha256": None} | {key.replace("_json", ".json"): value for key, value in changes.items()}
    metadata = {key: value for key, value in (header["__metadata__"] | renamed).items() if value is not None}
    return put(header | {"__metadata__": metadata}, body)


def unhashed_metadata() -> dict[str, str]:
    return {key: value for key, value in parts(saved())[0]["__metadata__"].items() if key != "sha256"}


def with_config(**changes: Any) -> Path:
    return with_metadata(config_json=json.dumps(json.loads(dump_config(UNTIED)) | changes))


def with_tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A model whose tensors were changed and written by the safetensors library."""
    tensors = dict(safetensors.numpy.load_file(saved()))
    change(tensors)
    safetensors.numpy.save_file(tensors, "x.safetensors", unhashed_metadata())
    return Path("x.safetensors")


# ---- save and load


def test_a_model_round_trips_exactly() -> None:
    for config in [UNTIED, TIED]:
        before = model(config)
        special = np.array([0.0, -0.0, 1e-45, -1e-45, 1.17549435e-38, -3.4028235e38, 3.4028235e38, 1 / 3], "f4")
        before.tensors["model.norm.weight"][:] = special
        save("m", before)
        after = load("m")
        assert (after.config, after.tokenizer_json, after.record) == (config, TOKENIZER, before.record)
        assert after.tokenizer_config_json == before.tokenizer_config_json
        assert list(after.tensors) == list(config.tensor_shapes()) and len(after.tensors) == len(before.tensors)
        for name, array in before.tensors.items():
            result = after.tensors[name]
            assert (result.dtype, result.shape) == (np.float32, array.shape) and result.tobytes() == array.tobytes()


def test_metadata_has_these_keys_in_this_order() -> None:
    header, _ = parts(saved())
    metadata = header["__metadata__"]
    assert next(iter(header)) == "__metadata__"
    assert list(metadata) == list(read_header("m.safetensors").metadata) == METADATA
    assert (metadata["format"], metadata["llmcli"], metadata["tokenizer.json"]) == ("pt", "1", TOKENIZER)
    assert json.loads(metadata["training.json"]) == model().record.to_json()


def test_the_bytes_are_a_function_of_the_model_alone() -> None:
    """Whatever the order of the tensors, their order in memory and their byte order."""
    path = saved()
    expected = path.read_bytes()
    backwards, strange = model(), model()
    backwards.tensors = dict(reversed(backwards.tensors.items()))
    strange.tensors = {name: np.asfortranarray(array).astype(">f4") for name, array in strange.tensors.items()}
    for same in (model(), backwards, strange, load(path)):  # the last one is saved over its own file
        save(path, same)
        assert path.read_bytes() == expected
    save(path, model(seed=1))
    assert path.read_bytes() != expected


def test_the_digest_is_that_of_the_file_with_zeros_in_place_of_it() -> None:
    header = read_header(saved())
    own = header.metadata["sha256"]
    assert header.path.read_bytes().count(own.encode()) == 1
    zeros = header.path.read_bytes().replace(own.encode(), b"0" * 64)
    assert own == hashlib.sha256(zeros).hexdigest() == digest(header)


def test_a_hash_inside_a_text_of_the_metadata_is_not_replaced() -> None:
    checkpoint = model()
    checkpoint.record |= {"sha256": "0" * 64, "x": '"sha256":"' + "0" * 64 + '"'}
    save("m", checkpoint)
    header = read_header("m")
    assert digest(header) == header.metadata["sha256"] and load("m").record == checkpoint.record


def test_a_changed_weight_is_an_error_when_the_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    header, body = parts(saved())
    changed = body[:-2] + bytes([body[-2] ^ 1]) + body[-1:]
    path = put(header, changed, "m.safetensors")
    with pytest.raises(
        LLMError, match=r"m\.safetensors is damaged, or it was changed after .*: llm import m\.safetensors"
    ):
        load(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_HASHED_BYTES", path.stat().st_size - 1)  # of a large file that would take too long
        assert load(path).config == UNTIED
    header["__metadata__"] = dict(
        reversed(header["__metadata__"].items())
    )  # in an order that this program never writes
    with pytest.raises(LLMError, match=r"m\.safetensors was changed by another program after .*: llm import m\."):
        load(put(header, changed, "m.safetensors"))


def saved_again(change: Callable[[np.ndarray], np.ndarray], **metadata: str) -> Path:
    """A model that the safetensors library read and wrote."""
    path = saved()
    tensors = {name: change(array) for name, array in safetensors.numpy.load_file(path).items()}
    with safetensors.safe_open(path, "numpy") as file:
        safetensors.numpy.save_file(tensors, "again.safetensors", file.metadata() | metadata)
    return Path("again.safetensors")


def test_a_file_that_another_program_saves_again_is_changed_only_if_its_content_is() -> None:
    assert load(saved_again(lambda array: array)).record == model().record
    for other in (
        saved_again(lambda array: array.astype("float16")),
        saved_again(lambda array: array + (array.size == 8)),
        saved_again(lambda array: array, **{"training.json": "{}"}),
    ):
        with pytest.raises(LLMError, match=r"changed .*after it was written: .* llm import again\.safetensors"):
            load(other)
        assert loading.load(other, accept_changes=True).config == UNTIED


# ---- reading values


def test_tensors_are_stacked_from_disk_and_from_memory() -> None:
    held = model()
    save("m", held)
    names = ["lm_head.weight", "model.embed_tokens.weight", "lm_head.weight"]
    for checkpoint in (held, load("m")):
        assert np.array_equal(checkpoint.stacked(names), np.concatenate([held.tensors[name] for name in names]))


def test_a_file_cut_off_while_it_is_read_is_an_error() -> None:
    path = saved()
    loaded, header = load(path), read_header(path)
    assert loaded.tensors["lm_head.weight"].shape == (11, 8)  # from now on the file is open
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(LLMError, match=r"m\.safetensors ends inside model\.norm\.weight"):
        loaded.tensors["model.norm.weight"]
    with pytest.raises(LLMError, match=r"m\.safetensors ends inside model\.norm\.weight"):
        list(read_values(header, header.tensors["model.norm.weight"]))
    save(path, model(TIED))
    loaded = load(path)
    save(path, model(replace(TIED, vocab_size=12)))
    with pytest.raises(LLMError, match=r"m\.safetensors was replaced while it was read"):
        loaded.tensors["model.embed_tokens.weight"]


# ---- headers of any file


def test_the_error_says_what_another_file_is() -> None:
    for kind in OTHERS:
        make, message = OTHERS[kind]
        Path("x").write_bytes(make())
        for read in (read_header, load):
            with pytest.raises(LLMError, match=f"^x {'' if message.startswith('is ') else '.*'}{message}") as caught:
                read("x")
            assert caught.value.exit_code == 1


# ---- files of this program and of others


def test_metadata_that_is_missing_or_invalid_is_named() -> None:
    version = "has format version .*, this program reads up to 1; upgrade it: pip install"
    versions = ["2", "10", "999999999999999999999", "9" * 5000, "", "-1", "1.0", "one", "²"]
    cases: list[tuple[dict[str, str | None], str]] = [({"llmcli": text}, version) for text in versions]
    for key in ["config.json", "tokenizer.json", "training.json"]:
        cases.append(({key.replace(".", "_"): None}, f"has no {key} in its metadata; it is damaged"))
    for text in ["", "{", "[" * 100_000, '{"a": ' + "[" * 200 + "]" * 200 + "}", '{"a": "\\ud800"}', "9" * 5000]:
        cases += [({f"{name}_json": text}, rf": its {name}\.json is not JSON") for name in ("training", "config")]
    for changes, message in cases:
        with pytest.raises(LLMError, match=rf"^x\.safetensors ?{message}"):
            load(with_metadata(**changes))


def test_a_config_that_does_not_match_is_an_error_of_the_file_not_of_usage(no_hang: None) -> None:
    cases = [
        ({"model_type": "bert"}, "model_type to 'bert'"),
        ({"num_hidden_layers": 10**9}, "has 1,000,000,000 layers, but the file has fewer tensors"),
        ({"num_hidden_layers": 10**4000}, "num_hidden_layers is a number of 13288 bits; expected"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\.input_layernorm\.weight is missing"),
        ({"vocab_size": 10**9}, r"embed_tokens\.weight has shape \[11, 8\]"),
        ({"hidden_size": 10}, r"embed_tokens\.weight has shape \[11, 8\]; its config requires \[11, 10\]"),
        ({"tie_word_embeddings": True}, r"'lm_head\.weight' is not part of the model"),
    ]
    for changes, message in cases:
        with pytest.raises(LLMError, match=rf"^x\.safetensors: .*{message}") as caught:
            load(with_config(**changes))
        assert caught.value.exit_code == 1, (changes, message)


def put_in(name: str, array: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: array})


O_PROJ, Q_NORM = (f"model.layers.0.self_attn.{name}.weight" for name in ("o_proj", "q_norm"))


def test_the_error_names_the_tensor() -> None:
    cases = [
        *((lambda tensors, name=name: tensors.pop(name), f"tensor {name} is missing; the file is damaged")
          for name in ("model.embed_tokens.weight", Q_NORM, "model.norm.weight", "lm_head.weight")),
        (put_in("model.layers.1.x", np.zeros(3, "f4")), r"tensor 'model\.layers\.1\.x' is not part of the model"),
        (put_in(O_PROJ, np.zeros((24, 8), "f4")), rf"{O_PROJ} has shape \[24, 8\]; its config requires \[8, 24\]"),
        *((put_in("model.norm.weight", np.zeros(8, dtype)), rf"norm\.weight is {name}; expected F32 or F16 or BF16")
          for dtype, name in (("i4", "I32"), ("f8", "F64"), ("u2", "U16"))),
    ]  # fmt: skip
    for change, message in cases:
        with pytest.raises(LLMError, match=message):
            load(with_tensors(change))
