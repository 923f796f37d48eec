"""What a model was trained on in earlier stages, in its record."""

import hashlib
import json
from pathlib import Path

from llmcli.formats import checkpoint, loading
from llmcli.formats.training_record import TrainingRecord
from llmcli.formats.training_stages import (
    AVERAGE,
    BASE,
    METADATA_KEY,
    all_stages,
    as_earlier,
    describe,
    from_metadata,
    joined,
    to_metadata,
)
from tests.conftest import TEXT, random_checkpoint
from tests.formats.test_ensemble_file import CONFIG, TOKENIZER

OWN = TrainingRecord.from_json(
    {"corpus": [{"name": "a.txt", "bytes": 9, "sha256": "a", "held_out": 1}], "train_bytes": 8, "steps": 5}
)
CHAT = TrainingRecord.from_json({
    "corpus": [{"name": "b.jsonl", "bytes": 7, "sha256": "b", "shape": "messages", "conversations": 3}],
    "held_out": {"bytes": 1, "files": [{"name": "v", "bytes": 1, "sha256": "v"}]},
    "conversations": {"training": 3, "held_out_share": 0.1},
})  # fmt: skip
IMPORTED = TrainingRecord.from_json({"imported": {"form": "GGUF file"}})


def test_a_stage_has_what_says_what_was_trained_on() -> None:
    assert as_earlier(OWN, BASE, "m.safetensors") == [
        {"stage": "base model", "file": "m.safetensors", "corpus": OWN.document["corpus"], "train_bytes": 8}
    ]
    [chat] = as_earlier(CHAT, BASE, "m")
    assert (chat["held_out"], chat["conversations"]) == (
        {"files": CHAT.document["held_out"]["files"]}, {"held_out_share": 0.1}
    )  # fmt: skip
    assert as_earlier(IMPORTED, BASE, "m") == [] and joined([], []) == {}


def test_stages_of_stages_are_carried_along_once() -> None:
    second = CHAT | joined(as_earlier(OWN, BASE, "1"))
    third = OWN | joined(as_earlier(second, BASE, "2"))
    fourth = OWN | joined(as_earlier(third, BASE, "3"))
    assert [one.file for one in third.earlier_stages] == ["2", "1"]
    assert [one.file for one in fourth.earlier_stages] == ["3", "2"]  # that of 1 is the same as that of 3
    assert [one.file for one in third.stages] == ["", "2", "1"]
    assert third.stages[0].corpus == OWN.corpus
    assert [describe(one) for one in second.stages] == ["", "in its base model, 1"]


def test_an_average_has_the_stages_of_its_models() -> None:
    average = OWN | {"average_of": ["1", "2"], **joined(as_earlier(OWN, AVERAGE, "1"), as_earlier(CHAT, AVERAGE, "2"))}
    assert [one.file for one in all_stages([average])] == ["1", "2"]
    assert [one["file"] for one in as_earlier(average, BASE, "3")] == ["1", "2"]
    old = OWN | {"average_of": ["1"]}  # of a version that recorded no stages
    assert old.stages == [old]


def test_mix_carries_the_text_of_each_model_along(llm) -> None:
    Path("a.txt").write_text(TEXT)
    text = {"name": "a.txt", "bytes": len(TEXT.encode()), "sha256": hashlib.sha256(TEXT.encode()).hexdigest()}
    for name, record in (("a", TrainingRecord() | {"corpus": [text], "train_bytes": text["bytes"]}), ("b", OWN)):
        model = random_checkpoint(CONFIG, seed=1, tokenizer_json=TOKENIZER.to_json())
        model.record = record
        checkpoint.save(Path(f"{name}.safetensors"), model)
    assert llm("mix", "a.safetensors", "b.safetensors").exit_code == 0
    stages = all_stages(loading.load_any("mixture.safetensors").records)
    assert [one.corpus[0].name for one in stages] == ["a.txt", "a.txt"]
    answer = llm("eval", "a.txt", "-m", "mixture.safetensors")
    assert "mixture.safetensors: trained on all of this text" in answer.stderr


def test_an_exported_model_carries_the_names_of_the_files_but_nothing_that_leads_to_them() -> None:
    member = "https://example.com/secret/page"
    names = ["home/me/b.jsonl", "notes.zip/private/c.txt", f"crawl/site.warc.gz/{member}", "more/site.warc.gz/http://a"]
    members = ["", "private/c.txt", member, "http://a"]
    files = [
        {"name": name, "path": f"../{name}", "bytes": 7, "sha256": "b" * 64, "member": member}
        for name, member in zip(names, members, strict=True)
    ]
    record = CHAT | joined(as_earlier(OWN, BASE, "1")) | {"corpus": files, "reading": {"strip_boilerplate": ["ff"]}}
    [text] = to_metadata(record, "m").values()
    assert json.loads(text)[0] == {
        "stage": "exported model", "file": "m",
        "corpus": [
            {"name": "b.jsonl", "bytes": 7}, {"name": "c.txt", "bytes": 7}, {"name": "site.warc.gz", "bytes": 14},
        ],
    }  # fmt: skip
    found = from_metadata(text)["earlier_stages"]
    assert [(one["stage"], one["file"]) for one in found] == [("exported model", "m"), ("base model", "1")]
    assert [describe(one) for one in (TrainingRecord() | {"earlier_stages": found}).stages[1:]] == [
        "before it was exported, in m", "in its base model, 1"
    ]  # fmt: skip
    assert to_metadata(IMPORTED, "m") == {} and METADATA_KEY == "llmcli.earlier_stages"
    for damaged in (None, 7, "", "{", "[1]", "{}", "[" * 100_000):
        assert from_metadata(damaged) == {}
