"""A damaged GGUF is an error of one line, and all types of tensors are known."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.gguf import header as gguf_header
from llmcli.formats.loading import open_tokenizer
from tests.formats.gguf_by_hand import FIELDS, TENSOR_NAMES, encoded_text, gguf_bytes


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, 1)


def test_a_damaged_header_is_one_line_of_error(tmp_path: Path) -> None:
    name = encoded_text("general.name")
    cases = [
        (lambda data: data[:3], "cut off|not a safetensors"),
        (lambda data: data[:20], "cut off inside its header"),
        (lambda data: data[: len(data) // 3], "cut off"),
        (lambda data: data[:-40], "the tensors end at byte"),
        (replaced(struct.pack("<I", 3), struct.pack("<I", 1)), "m.gguf: a GGUF file of version 1; 2 and 3"),
        (replaced(struct.pack("<Q", len(TENSOR_NAMES)), struct.pack("<Q", 1 << 60)), "at most 131,072 are supported"),
        (replaced(name, struct.pack("<Q", 1 << 62) + name[8:]), "cut off inside its header"),
        (replaced(name + struct.pack("<I", 8), name + struct.pack("<II", 9, 9)), "array .* has entries of type 9"),
        (lambda data: b"", "is empty; expected a GGUF file"),
        (lambda data: b"no model at all", "is not a GGUF file"),
        (replaced(encoded_text("blk.0.ffn_up.weight"), encoded_text("blk.0.ffn_upp.weight")[:-1]), "."),
    ]
    for change, message in cases:
        path = tmp_path / "m.gguf"
        path.write_bytes(change(gguf_bytes()))
        with pytest.raises(LLMError, match=message) as caught:
            loading.load(path)
        assert "\n" not in str(caught.value), (change, message)


WHOLE = gguf_bytes()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9000), st.binary(min_size=1, max_size=8), st.integers(0, len(WHOLE)))
def test_any_damage_gives_a_model_or_an_error_of_one_line(tmp_path_factory, place: int, part: bytes, end: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "m.gguf"
    path.write_bytes((WHOLE[:place] + part + WHOLE[place + len(part) :])[: max(end, 9000)])
    try:
        model = loading.load(path)
        open_tokenizer(model).encode("ab")
        for name in model.config.tensor_shapes():
            model.tensors[name]
    except LLMError as error:
        assert "\n" not in str(error)


def test_the_error_names_an_unsupported_tensor_type(tmp_path: Path) -> None:
    for kind, name in [(20, "IQ4_NL"), (39, "MXFP4"), (99, "number 99")]:
        path = tmp_path / "m.gguf"
        row = b"x" * (17 if kind == 39 else 18)
        path.write_bytes(gguf_bytes(FIELDS, {"blk.0.ffn_up.weight": (kind, (1, 32), row)}))
        with pytest.raises(
            LLMError, match=rf"m.gguf: tensor blk.0.ffn_up.weight is of type {name}, .*; F32, F16, .* are$"
        ):
            loading.load(path)


def test_all_tensor_types_of_the_gguf_package_are_known() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    ours = gguf_header.TYPES
    known = {number: name for number, (name, _, _) in ours.items()}
    assert {kind.value: kind.name for kind in gguf.GGMLQuantizationType}.items() <= known.items()
    sizes = {name: (block, size) for name, block, size in ours.values()}
    theirs = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType}
    assert theirs.items() <= sizes.items()
