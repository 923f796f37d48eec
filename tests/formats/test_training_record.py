"""The training record: read as attributes, written as it was, in files of every version and from any JSON."""

import contextlib
import json
from typing import Any, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmcli.errors import LLMError
from llmcli.evaluation.figures import Figures
from llmcli.evaluation.training_text import held_out_files, recorded_reading, trained_lengths
from llmcli.formats.training_record import TrainingRecord, seen_bytes
from llmcli.formats.training_stages import BASE, as_earlier, describe
from llmcli.pages.model_facts import record_rows
from llmcli.training.files.curve import answer_counts, read_curve
from tests.formats.test_metadata import json_values, places, replaced
from tests.golden.earlier_files import FILES
from tests.golden.models import read_safetensors

EARLIER = sorted(path for path in FILES.glob("*/*.safetensors") if ".resume." not in path.name)
FULL: dict[str, Any] = {  # a key of each kind that is read, with keys of other versions beside them
    "corpus": [
        {"name": "a.txt", "bytes": 900, "sha256": "a", "held_out": 90, "left_out": 5, "columns": ["text"], "new": 1},
        {"name": "c.jsonl", "bytes": 70, "sha256": "c", "shape": "messages", "conversations": 3, "path": "../c.jsonl"},
    ],
    "train_bytes": 805, "read_bytes": 800, "train_tokens": 300, "seen_bytes": "6162", "reading": {"columns": ["text"]},
    "held_out": {"bytes": 90, "tokens": 30, "from": "the last tenth", "of": "answers", "seen_by_base": True,
                 "files": [{"name": "v.txt", "bytes": 9, "sha256": "v"}]},
    "conversations": {"training": 3, "held_out": 1, "held_out_share": None, "train_tokens": 20, "train_bytes": 60,
                      "from_step": 5, "epochs": 1.5, "duplicates": 0},
    "earlier_stages": [{"stage": "base model", "file": "b", "corpus": [{"name": "b.txt", "sha256": "b"}], "more": [1]}],
    "base": {"file": "b", "sha256": "5", "source_sha256": "6"}, "imported": {"form": "GGUF"}, "adapter": "x",
    "train": {"steps": 10, "seconds": 1.5, "context": 32, "recipe": "lora", "seed": 1}, "versions": {"torch": "2"},
    "steps": 10, "best_step": 8, "epochs": 2.25, "interrupted": True, "problem": "none", "not_evaluated": "why",
    "bits_per_byte": 1.5, "bits_per_byte_without_cache": 1.75, "bits_per_byte_before": None,
    "ngram_cache": {"weights": [[1, 0, 0.5, -1]]}, "expert_shares": [[0.5, 0.5]], "sharpness": 1.0,
    "held_out_measured": {"tokens": 30, "bytes": 90, "context": 16}, "validation": {"conversations": 2, "tokens": 9},
    "plain_text": {"from": "text", "tokens": 9, "before": None, "after": 2.5},
    "distillation": {"from_step": 4, "teacher_bits_per_byte": 2.0}, "clock": {"seconds": 1.25, "tokens_per_second": 9},
    "curve": {"step": [5, 10], "loss": [2.0, 1], "eval_step": [10], "eval_bits_per_byte": [float("inf")]},
    "samples": {"prompt": "The", "texts": [[5, " cat"], [10, "\n🍎"]]}, "verdict": ["Good.", "りんご"],
    "probe": {"prompt": "The", "predictions": [[5, [[" cat", 0.5], [" 🐱", 0]]], [10, []]]},
    "memorised": {"share": 0.5, "strings": 9, "held_out_share": None, "searched_bytes": 9},
    "answers": {"questions": 4, "verbatim": 0.5, "exact": 0.25}, "a later key": {"a": [None]},
}  # fmt: skip


def differences(value: Any, document: Any, place: str = "") -> list[str]:
    """Where a value that was read differs from the JSON: attributes from keys, tuples from lists."""
    if isinstance(document, list):
        return [line for i, one in enumerate(document) for line in differences(value[i], one, f"{place}[{i}]")]
    if isinstance(document, dict) and not isinstance(value, dict):
        names = [name for name in get_type_hints(type(value)) if name != "document"]
        read = [(name, name.removesuffix("_")) for name in names if name.removesuffix("_") in document]
        return [
            line for name, key in read for line in differences(getattr(value, name), document[key], f"{place}.{key}")
        ]
    is_nan = value != value and document != document
    return [] if is_nan or value == document else [f"{place}: {value!r} for {document!r}"]


def test_the_record_of_an_earlier_version_is_read_and_written_as_it_is() -> None:
    for path in EARLIER:
        text = read_safetensors(path)[0]["training.json"]
        record = TrainingRecord.parse(text)
        assert json.dumps(record.to_json(), ensure_ascii=False) == text, path
        assert differences(record, json.loads(text)) == [], path


def test_every_key_becomes_an_attribute_and_unknown_ones_stay() -> None:
    record = TrainingRecord.from_json(FULL)
    assert differences(record, FULL) == [] and json.dumps(record.to_json()) == json.dumps(FULL)
    assert get_type_hints(TrainingRecord).keys() - FULL.keys() == {
        "average_of", "bits_per_byte_before_without_cache", "document", "epoch_search", "experts", "file",
        "known_answers", "stage",
    }  # fmt: skip
    assert record.held_out.from_ == "the last tenth" and [file.name for file in record.texts] == ["a.txt"]
    assert record.train and record.train.document["seed"] == 1 and record.corpus[1].held_out is None


def test_changes_keep_the_order_of_the_keys() -> None:
    record = TrainingRecord.from_json(FULL)
    changes = {"steps": 11, "memorised": None, "average_of": ("a", "b")}
    changed = record | changes
    assert json.dumps(changed.to_json()) == json.dumps(FULL | changes)
    assert (changed.steps, changed.memorised, changed.average_of) == (11, None, ("a", "b")) and record.steps == 10
    rest = record.without("steps", "corpus")
    assert list(rest.to_json()) == [key for key in FULL if key not in ("steps", "corpus")] and rest.steps == 0
    assert record != rest and record == TrainingRecord.from_json(FULL) and record != record | {"a later key": 1}


def test_a_value_of_another_type_is_an_error() -> None:
    count = "a whole number of at least 0"
    cases = [
        *(({"steps": value}, f"steps is {value}; expected {count}") for value in (-1, True, 1.0, 2**53, {})),
        ({"bits_per_byte": 10**400}, "bits_per_byte is a number of 1329 bits; expected a number or null"),
        ({"curve": {"step": 5}}, "curve.step is 5; expected a list"),
        ({"curve": {"step": [1, -1]}}, f"curve.step[1] is -1; expected {count}"),
        ({"interrupted": 0}, "interrupted is 0; expected true or false"),
        ({"train": []}, "train is []; expected an object or null"),
        ({"answers": {"questions": 1, "exact": "x"}}, "answers.exact is 'x'; expected a number from 0 to 1"),
        ({"memorised": {"share": 1.5}}, "memorised.share is 1.5; expected a number from 0 to 1"),
        ({"seen_bytes": "zz"}, "seen_bytes is 'zz'; expected bytes in hexadecimal"),
        ({"earlier_stages": [{"corpus": [3]}]}, "earlier_stages[0].corpus[0] is 3; expected an object"),
        ({"experts": [{}, {"steps": "1"}]}, "experts[1].steps is '1'; expected a whole number of at least 0"),
        ({"samples": {"texts": [[1, "a"], [1]]}}, "samples.texts[1] is [1]; expected a list of 2 values"),
        ({"samples": {"texts": [["a", 1]]}}, "samples.texts[0][0] is 'a'; expected a whole number of at least 0"),
        (
            {"probe": {"predictions": [[1, [["a", 1.5]]]]}},
            "probe.predictions[0][1][0][1] is 1.5; expected a number from 0 to 1",
        ),
    ]
    for changes, error in cases:
        with pytest.raises(LLMError) as caught:
            TrainingRecord.parse(json.dumps(FULL | changes))
        assert str(caught.value) == f"its training.json is not valid: {error}", (changes, error)


@example(place=("bits_per_byte",), new=float("nan"))
@example(place=("corpus",), new={"a": "x" * 10**6})
@example(place=("steps",), new=[0] * 10**5)
@given(place=st.sampled_from(places(FULL)), new=json_values)
def test_any_value_of_a_key_is_read_or_an_error_of_one_line(place: tuple[Any, ...], new: Any) -> None:
    """What is read is written again, and can be shown."""
    text = json.dumps(replaced(FULL, place, new))
    try:
        record = TrainingRecord.parse(text)
    except LLMError as error:
        assert len(str(error)) < 200 and "\n" not in str(error) and str(error).startswith("its training.json is not ")
        return
    assert json.dumps(record.to_json()) == text and differences(record, json.loads(text)) == []
    assert all(isinstance(shown, str) for row in record_rows(record) for shown in row)
    with contextlib.suppress(LLMError):
        read_curve(record)
    assert isinstance(answer_counts(record), str) and isinstance(trained_lengths(record.stages), dict)
    assert describe(record.stages[0]) == ""
    assert len(as_earlier(record, BASE, "m")) <= len(record.stages) and held_out_files(record) is not None
    assert Figures.of_record(record) is None or recorded_reading([record]).columns is not None
    seen_bytes([record])
