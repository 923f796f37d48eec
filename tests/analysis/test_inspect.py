"""The parameter tree of headers with known names; statistics of tensors with known values."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.analysis.inspect import HISTOGRAM_BINS, find_tensor, parameter_tree, parameters_by_dtype, tensor_statistics
from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.safetensors import file as safetensors_file
from llmcli.formats.safetensors.dtypes import BYTES_PER_ELEMENT
from llmcli.formats.safetensors.header import read_header
from tests.reliability.malformed import put, tensor

CONFIG = ModelConfig(10, 4, 6, 3, 2, 1, 2, 16)


def header_of(shapes, dtype="F32"):
    """A header without a file; `shapes` is {name: shape}."""
    tensors, position = {}, 100
    for name, shape in shapes.items():
        end = position + math.prod(shape) * BYTES_PER_ELEMENT[dtype]
        tensors[name] = TensorInfo(name, dtype, tuple(shape), position, end)
        position = end
    return Header(Path("some.safetensors"), position, 100, tensors, {})


def statistics_of(path, dtype, values, shape=None):
    """The statistics of one tensor; `values` are numbers to pack as `dtype`, or bytes."""
    letters = {"U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "U64": "Q", "I64": "q",
               "F16": "e", "F32": "f", "F64": "d"}  # fmt: skip
    data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{letters[dtype]}", *values)
    shape = shape or [len(data) // BYTES_PER_ELEMENT[dtype]]
    header = read_header(put({"t": tensor(dtype, shape, 0, len(data))}, data, path / "t.safetensors"))
    return tensor_statistics(header, header.tensors["t"])


def outline(group):
    """[(name, copies, parameters, outline of the children), ...]"""
    return [(child.name, child.copies, child.parameters, outline(child)) for child in group.children.values()]


def leaves(group):
    return [leaf for child in group.children.values() for leaf in (leaves(child) if child.children else [child])]


EXPERTS = [f"model.layers.{i}.mlp.experts.{j}.{w}.weight" for i in range(2) for j in range(4) for w in ("w1", "w2")]


def test_trees_of_names():
    for shapes, expected in [
        ({"0.weight": (4,), "0.bias": (1,), "2.weight": (4,), "2.bias": (1,)},
         [("weight", 2, 8, []), ("bias", 2, 2, [])]),  # names that begin with numbers
        ({f"scale.{i}": (3,) for i in range(5)} | {"x": (1,)},
         [("scale.#", 5, 15, []), ("x", 1, 1, [])]),  # numbered tensors that are not blocks
        ({f"h.{i}.{w}": (3,) for i in range(5) for w in ("w", "b")} | {"h.scale": (1,)},  # a node of their own
         [("h", 0, 31, [("#", 5, 30, [("w", 5, 15, []), ("b", 5, 15, [])]), ("scale", 1, 1, [])])]),
        ({"a": (2,), "a.b": (3,)}, [("a", 1, 5, [("b", 1, 3, [])])]),  # a tensor with the name of a group
        (dict.fromkeys(EXPERTS, (5,)) | {f"model.layers.{i}.mlp.gate.weight": (3,) for i in range(2)},
         [("model.layers", 2, 86, [
             ("mlp", 0, 86, [
                 ("experts", 4, 80, [("w1.weight", 8, 40, []), ("w2.weight", 8, 40, [])]),
                 ("gate.weight", 2, 6, []),
             ]),
         ])]),
    ]:  # fmt: skip
        assert outline(parameter_tree(header_of(shapes))) == expected


def test_a_leaf_has_the_shapes_of_its_tensors():
    root = parameter_tree(header_of({"a.0.w": (2, 3), "a.1.w": (2, 3), "a.2.w": (5, 3)}))
    (leaf,) = leaves(root)
    assert leaf.shapes == {(2, 3): 2, (5, 3): 1}


def test_every_tensor_is_in_the_tree_whatever_its_name():
    for name in ["", ".", "..", "a..b", ".a", "a.", "\u0663.w", "x" * 5000, "a." * 2999 + "a"]:
        root = parameter_tree(header_of({name: (3,), "other": (2,)}))
        assert root.parameters == 5, name
        assert sum(child.parameters for child in root.children.values()) == 5, name
        assert len(leaves(root)) == 2, name


def test_parameters_are_counted_by_dtype_the_most_frequent_first():
    tensors = header_of({"a": (2,)}).tensors | header_of({"b": (9,)}, "I8").tensors | header_of({"c": (3,)}).tensors
    counts = parameters_by_dtype(Header(Path("x"), 0, 0, tensors, {}))
    assert list(counts.items()) == [("I8", 9), ("F32", 5)]


def test_the_error_for_an_unknown_name_suggests_a_similar_one():
    for name, hint in [
        ("model.norm.wieght", "did you mean model.norm.weight?"),
        ("down", "did you mean model.layers.0.mlp.down_proj.weight?"),  # part of a name, though not similar to it
        ("zzz", "llm inspect some.safetensors --tensors"),
    ]:
        with pytest.raises(LLMError) as caught:
            find_tensor(header_of(CONFIG.tensor_shapes()), name)
        assert hint in str(caught.value), (name, hint)


def test_statistics_computed_by_hand(tmp_path):
    statistics = statistics_of(tmp_path, "F32", [-1.0, 0.0, math.nan, -0.0, 1.0, math.inf, 2.0, -math.inf], [2, 4])
    assert statistics.mean == pytest.approx(0.4)
    assert statistics.deviation == pytest.approx(math.sqrt((1.96 + 0.16 + 0.16 + 0.36 + 2.56) / 5))
    assert (statistics.min, statistics.max) == (-1.0, 2.0)
    assert (statistics.zeros, statistics.not_finite) == (2, 3)
    assert sum(statistics.histogram) == 5


def test_the_histogram_has_equal_intervals_from_min_to_max(tmp_path):
    values = [0.0, *(i + 0.5 for i in range(15)), 15.0, 7.5]
    assert statistics_of(tmp_path, "F32", values).histogram == [2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2]


def test_statistics_of_a_constant(tmp_path):
    for dtype, values in [
        ("F32", [0.125] * 9),
        ("F32", [1e20] * 3),  # adding 0.5 to it changes nothing in float64
        ("U64", [2**63] * 3),
    ]:
        statistics = statistics_of(tmp_path, dtype, values)
        assert statistics.mean == statistics.min == statistics.max == pytest.approx(values[0]), (dtype, values)
        assert statistics.deviation == 0, (dtype, values)
        assert sum(statistics.histogram) == len(values), (dtype, values)


def test_statistics_of_the_smallest_and_the_largest_range(tmp_path):
    for values in [[1.0, 1.0 + 2**-52], [-1.5e308, 1.5e308]]:
        statistics = statistics_of(tmp_path, "F64", values)
        assert (statistics.min, statistics.max) == (values[0], values[1]), values
        assert sum(statistics.histogram) == 2, values


def test_without_a_finite_value_the_statistics_are_nan(tmp_path):
    for values, not_finite in [([], 0), ([math.nan], 1), ([math.inf, -math.inf, math.nan], 3)]:
        statistics = statistics_of(tmp_path, "F32", values, None if values else [0, 7])
        assert all(
            math.isnan(value) for value in (statistics.mean, statistics.deviation, statistics.min, statistics.max)
        ), (values, not_finite)
        assert (statistics.zeros, statistics.not_finite, statistics.histogram) == (0, not_finite, []), values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.sampled_from([1, 3, 16]))
def test_statistics_do_not_depend_on_the_chunk_size(tmp_path_factory, values, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_file, "BLOCK_VALUES", block)
        statistics = statistics_of(tmp_path_factory.getbasetemp(), "F32", values)
    expected = np.array(values, np.float64)
    assert statistics.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert statistics.deviation == pytest.approx(expected.std(), rel=1e-9, abs=1e-6)
    assert (statistics.min, statistics.max, statistics.zeros) == (expected.min(), expected.max(), (expected == 0).sum())
    assert len(statistics.histogram) == HISTOGRAM_BINS
    assert sum(statistics.histogram) == len(values)
