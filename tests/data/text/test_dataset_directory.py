"""Directories of data sets: their training rows are read, other splits are held out, descriptions are not text."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from llmcli.data.sources import read_sources
from llmcli.data.text.dataset_directory import ALL_SPLITS
from llmcli.errors import LLMError
from llmcli.training.data.inputs import load_inputs
from tests.data.corpora import put

CARD = b"---\nlicense: mit\nconfigs:\n- config_name: default\n---\n# A data set\nA description that is no row.\n"


def text_of(split: str) -> list[dict[str, object]]:
    return [{"id": i, "text": f"The {split} row {i} tells of a cat and a dog."} for i in range(100)]


def put_rows(name: str, split: str) -> str:
    return put(name, "".join(json.dumps(row) + "\n" for row in text_of(split)).encode())


def write_arrow(name: str, split: str, form: str = "new_stream") -> None:
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    ipc = pytest.importorskip("pyarrow.ipc", exc_type=ImportError)
    table = pyarrow.Table.from_pylist(text_of(split))
    with open(put(name, b""), "wb") as file, getattr(ipc, form)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def saved_dataset(directory: str, split: str) -> None:
    """What `datasets.Dataset.save_to_disk` writes: a stream of Arrow batches, and two descriptions."""
    for name in ("dataset_info.json", "state.json"):
        put(f"{directory}/{name}", b'{"features": {"text": "a text that is no row"}}')
    write_arrow(f"{directory}/data-00000-of-00001.arrow", split)


def read_text(*names: str) -> str:
    return read_sources(names).text.utf8().decode()


def held_out_files(*names: str) -> list[str]:
    _, held_out = read_sources(names, splits=ALL_SPLITS).divided()
    return [document.name for document in held_out.text.documents]


def test_a_saved_dataset_is_its_rows() -> None:
    saved_dataset("saved", "train")
    assert [*map(str.strip, read_text("saved").split("\n\n"))] == [row["text"] for row in text_of("train")]
    write_arrow("a.arrow", "train", "new_file")  # a stream with an index
    assert read_text("a.arrow") == read_text("saved")


def test_the_splits_of_a_saved_dictionary() -> None:
    saved_dataset("d/train", "train")
    saved_dataset("d/test", "test")
    put("d/dataset_dict.json", b'{"splits": ["train", "test"]}')
    assert "The train row 7" in read_text("d") and "test" not in read_text("d")
    assert held_out_files("d") == [str(Path("d/test/data-00000-of-00001.arrow"))]


@pytest.mark.parametrize(
    ("others", "held_out", "unused"),
    [
        (["data/test-00000-of-00001.jsonl"], "test", ""),
        (["data/test-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"], "validation", "test"),
        (["dev.jsonl"], "dev", ""),
        (["eval/a.jsonl"], "eval", ""),
        (["dev-1.jsonl", "latest.jsonl"], "dev", ""),  # "latest" is no test
    ],
)
def test_a_cloned_dataset(others: list[str], held_out: str, unused: str) -> None:
    put("set/README.md", CARD)
    put("set/LICENSE", b"Anyone may read this.\n" * 20)
    put_rows("set/data/train-00000-of-00001.jsonl", "train")
    for name in others:
        put_rows(f"set/{name}", held_out if held_out in name else unused or "train")
    inputs = load_inputs(["set"], None, None, None, "bpe", Path("m.safetensors"))
    text, validation = inputs.corpus.utf8().decode(), inputs.validation.text.utf8().decode()
    assert "train row" in text and "no row" not in text and "Anyone" not in text
    assert f"{held_out} row" in validation and "train" not in validation
    assert not any(f"{word} row" in text for word in ("test", "validation", "dev", "eval"))
    assert any("2 files without rows of the data set: LICENSE, README.md" in line for line in inputs.corpus.skipped)
    assert any("other than training" in line for line in inputs.corpus.skipped) == bool(unused)


def test_an_explicit_validation_file_replaces_the_split() -> None:
    put("set/README.md", CARD)
    put_rows("set/train.jsonl", "train")
    put_rows("set/test.jsonl", "test")
    own = put_rows("own.jsonl", "own")
    inputs = load_inputs(["set"], own, None, None, "bpe", Path("m.safetensors"))
    assert "own row" in inputs.validation.text.utf8().decode() and "test row" not in inputs.corpus.utf8().decode()


@pytest.mark.parametrize("val", [None, 0.1])
def test_a_file_of_another_split_that_is_named_itself_is_training_text(val: float | None) -> None:
    for split in ("test", "train", "validation"):
        put_rows(f"set/{split}.jsonl", split)
    for names in (["set", "set/test.jsonl"], ["set/test.jsonl", "set"]):
        inputs = load_inputs(names, val, None, None, "bpe", Path("m.safetensors"))
        text = inputs.corpus.utf8().decode()
        assert "train row" in text and "test row" in text and "validation row" not in text
        assert inputs.held_out == val or "validation row" in inputs.validation.text.utf8().decode()


def test_an_error_about_empty_rows_names_the_training_split() -> None:
    put_rows("set/dev.jsonl", "dev")
    put("set/train.jsonl", b"")
    with pytest.raises(LLMError, match=r"^set.train\.jsonl is empty"):
        read_sources(["set"], splits=ALL_SPLITS)


def test_a_folder_with_an_ordinary_readme_is_no_dataset() -> None:
    put("notes/README.md", b"---\ntitle: My notes\n---\nSome text.\n")
    put("notes/test.txt", b"Some more text.\n")
    assert "Some text." in read_text("notes") and "Some more" in read_text("notes")


def test_the_card_names_the_files_of_splits() -> None:
    for files in (
        "\n  - split: train\n    path: a*.jsonl\n  - split: test\n    path:\n    - '**/b.jsonl'\n",
        "\n  - path: a*.jsonl\n    split: train\n  - path: ./b.jsonl\n    split: test_sft\ndataset_info:\n- x: 1\n",
        ' [{split: train, path: a*.jsonl}, {split: "test", path: [c.jsonl, b.json?]}]\n',
    ):
        card = f"---\nconfigs:\n- config_name: default\n  data_files:{files}"
        put("set/README.md", f"{card}---\nSee also:\n- split: test\n  path: a1.jsonl\n".encode())
        put_rows("set/a1.jsonl", "first")
        put_rows("set/b.jsonl", "second")
        assert "first row" in read_text("set") and "second row" not in read_text("set"), files
        assert held_out_files("set") == [str(Path("set/b.jsonl"))], files
        put_rows("set/a-dev.jsonl", "third")  # a path that names a split counts, too
        assert held_out_files("set") == [str(Path("set/a-dev.jsonl"))] and "third row" not in read_text("set")
        assert "first row" in read_text("set") and "second row" not in read_text("set"), files
        Path("set/a-dev.jsonl").unlink()


def test_splits_need_no_card_and_an_empty_one_is_left_out() -> None:
    put_rows("set/train.jsonl", "train")
    put_rows("set/test.jsonl", "test")
    assert held_out_files("set") == [str(Path("set/test.jsonl"))] and "test row" not in read_text("set")
    put("set/test.jsonl", b"")
    assert held_out_files("set") == [] and "train row" in read_text("set")
    assert read_sources(["set"]).text.skipped == ("set: 1 file without rows of the data set: test.jsonl",)


def test_a_test_split_alone_is_trained_on_without_its_card() -> None:
    put("set/README.md", CARD)
    put_rows("set/test.jsonl", "test")
    assert "test row" in read_text("set") and "no row" not in read_text("set")


def test_the_splits_of_an_archive_are_those_of_the_unpacked_directory() -> None:
    """With a fraction of the training text held out, other splits are not used."""
    for corpus, splits in (("two", ("train", "test")), ("three", ("train", "test", "validation"))):
        with zipfile.ZipFile(f"{corpus}.zip", "w") as archive:
            for split in splits:
                archive.write(put_rows(f"{corpus}/{split}.jsonl", split), f"data/{split}.jsonl")
    for name, val, held_out in (("two", None, "test"), ("three", None, "validation"), ("three", 0.1, "train")):
        for corpus in (name, f"{name}.zip"):
            inputs = load_inputs([corpus], val, None, None, "bpe", Path("m.safetensors"))
            text = inputs.corpus.utf8().decode()
            assert "train row" in text and "test row" not in text and "validation row" not in text
            if val is None:
                assert set(re.findall(r"(\w+) row", inputs.validation.text.utf8().decode())) == {held_out}
            else:
                assert inputs.held_out == val
            unused = {split for split in ("test", "validation") if split in "".join(inputs.corpus.skipped)}
            assert unused == {"two": set(), "three": {"test", "validation"}}[name] - {held_out}
            assert "held out" not in "".join(inputs.corpus.skipped)
            assert len(read_sources([corpus], splits=ALL_SPLITS).text.documents) == {"two": 2, "three": 3}[name]


def test_a_held_out_split_of_another_kind_is_named() -> None:
    pairs = "".join(f"question {i}?\tThe answer is {i}.\n" for i in range(30))
    put("train.tsv", ("prompt\tcompletion\n" + pairs).encode())
    put_rows("test.jsonl", "test")
    with zipfile.ZipFile("data.zip", "w") as archive:
        for name in ("train.tsv", "test.jsonl"):
            archive.write(name)
    with pytest.raises(LLMError, match=r"data\.zip/test\.jsonl has no conversations"):
        load_inputs(["data.zip"], None, None, None, "bpe", Path("m.safetensors"))
