"""`llm export --push`: what is written to a hub, what it says about itself, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import llmcli
from llmcli.errors import LLMError
from llmcli.formats import checkpoint, loading
from llmcli.formats.huggingface import upload
from tests.conftest import Llm
from tests.local_hub import TOKEN, Repository

RECORD = {
    "corpus": [{"name": "c|t.txt", "bytes": 1_200_000, "path": "private/c|t.txt"}, {"name": "d.txt", "bytes": 900}],
    "train": {"steps": 1200}, "steps": 1200, "epochs": 3.14, "clock": {"seconds": 141.0, "tokens_per_second": 9.0},
    "bits_per_byte": 1.7, "bits_per_byte_without_cache": 1.85, "ngram_cache": {"weights": [[0, 0, 0, 0]]},
}  # fmt: skip
PUSH = ("export", "m.safetensors", "d", "--to", "hf", "--push", "owner/cat")


@pytest.fixture
def trained(tiny_model: Path, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A model with a record, and a user who has a token."""
    model = loading.load(tiny_model)
    checkpoint.save("m.safetensors", replace(model, record=model.record | RECORD))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_a_pushed_model_opens_by_its_name(trained: SimpleNamespace, llm: Llm) -> None:
    answer = llm(*PUSH, "--license", "mit", "--private", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert re.search(r"uploading d to http://\S+/owner/cat \(new, private\): 6 files, [\d.]+ kB", answer.stderr)
    cat = trained.hub.repositories["owner/cat"]
    assert json.loads(answer.stdout) | {"bytes": 0, "file": ""} == {
        "file": "", "to": "hf", "bytes": 0, "pushed": "hf:owner/cat", "commit": cat.commit,
    }  # fmt: skip
    assert cat.private and cat.files.keys() - {".gitattributes"} == {path.name for path in Path("d").iterdir()}
    words = ("generate", "The cat", "-n", 8, "-t", 0, "-m")
    there = llm(*words, "hf:owner/cat")
    assert there.exit_code == 0 and there.stdout == llm(*words, "d").stdout, there.stderr
    scores = [
        llmcli.load(name, cache=False).score("The cat sat.").bits_per_byte for name in ("hf:owner/cat", "m.safetensors")
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_the_card_states_the_facts_of_the_record(trained: SimpleNamespace, llm: Llm, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    answer = llm(*PUSH, "--license", "mit", "--name", "Cat *1*")
    assert answer.exit_code == 0, answer.stderr
    text = trained.hub.repositories["owner/cat"].files["README.md"].decode()
    data = ModelCard(text).data
    assert (data.license, data.library_name) == ("mit", "transformers")
    assert "\n# Cat \\*1\\*\n" in text and " on c|t.txt, d.txt." in text.replace("\\", "")
    assert "| training | 1,200 steps, 3.1 epochs, 2m 21s |" in text
    assert "| held-out text | network 1.850 bits per byte |" in text and "1.700" not in text
    assert "does not contain the cache" in text and 'from_pretrained("owner/cat")' in text
    assert "llm generate 'Once upon a time' -m hf:owner/cat" in text
    assert str(tmp_path) not in text and "private/" not in text


def test_a_card_is_kept_once_it_was_edited(trained: SimpleNamespace, llm: Llm) -> None:
    words = ("export", "m.safetensors", "d", "--to", "hf")
    assert "states no license; add one with --license" in llm(*words).stderr
    card = Path("d/README.md")
    assert "-m d\n" in card.read_text("utf-8") and "license" not in card.read_text("utf-8")
    assert "kept" not in llm(*words, "--force", "--license", "mit").stderr
    assert 'license: "mit"' in card.read_text("utf-8")
    card.write_text("# Mine\n", "utf-8")
    assert "kept the existing model card d/README.md" in llm(*words, "--force").stderr
    assert card.read_text("utf-8") == "# Mine\n"


def test_an_older_model_is_replaced_as_a_whole(trained: SimpleNamespace, llm: Llm) -> None:
    old = dict.fromkeys(("config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"), b"{}")
    mine = {".gitattributes": b"", "cat.gguf": b"GGUF"}
    cat = trained.hub.repositories["owner/cat"] = Repository(old | mine)
    answer = llm(*PUSH)
    assert answer.exit_code == 1 and not Path("d").exists()
    assert answer.stderr.startswith("error: hf:owner/cat exists; add --force to replace its config.json, model-0000")
    answer = llm(*PUSH, "--force")
    assert answer.exit_code == 0, answer.stderr
    deleted = "model-00001-of-00001.safetensors, model.safetensors.index.json"
    assert f"replaces config.json; deletes {deleted}; keeps cat.gguf" in answer.stderr
    assert cat.files.keys() == {path.name for path in Path("d").iterdir()} | mine.keys()
    assert "is public; make it private in its settings" in llm(*PUSH, "--force", "--private").stderr


@pytest.mark.parametrize("when", ["before it is created", "after it is created", "before it is replaced"])
def test_two_pushes_do_not_mix_two_models(
    trained: SimpleNamespace, llm: Llm, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import are_progress_bars_disabled

    def another_push() -> None:
        sharded = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"", "model.safetensors.index.json": b"{}"}
        trained.hub.repositories["owner/cat"] = Repository(sharded, commit="ab" * 20)

    def create_repo(api: HfApi, *args: str, **more: bool) -> None:
        create(api, *args, **more)
        another_push()

    create = HfApi.create_repo
    if when == "before it is replaced":
        trained.hub.repositories["owner/cat"] = Repository({"config.json": b"old"})
    if when == "after it is created":
        monkeypatch.setattr(HfApi, "create_repo", create_repo)
    target = upload.find_target("owner/cat", private=False, force=True)
    assert llm(*PUSH[:5]).exit_code == 0
    if when != "after it is created":
        another_push()
    with pytest.raises(
        LLMError, match=r"^another program changed \S+/owner/cat in the meantime, so nothing was uploaded"
    ):
        upload.push(target, Path("d"), lambda note: None, private=False, progress=True)
    assert not are_progress_bars_disabled()
    cat = trained.hub.repositories["owner/cat"]
    assert cat.commit == "ab" * 20 and "model.safetensors" not in cat.files


def test_errors_say_what_to_do(trained: SimpleNamespace, llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def error(*words: object, repository: str = "owner/cat") -> str:
        answer = llm(*PUSH[:-1], repository, *words, "--force")
        assert answer.exit_code in (1, 2) and not answer.stdout, answer.stderr
        return str(answer.stderr).splitlines()[-1]

    hub = trained.hub
    assert "--push OWNER/NAME" in error(repository="cat")
    assert "google/cat ('You don\\'t have the rights" in error(repository="google/cat")
    hub.owners.append("closed")
    assert error("--license", "MIT2").startswith(f"error: {hub.endpoint} refuses the files: 'Invalid metadata in")
    hub.refused = {"/commit/": (403, "you can only read")}
    assert "the token may not write" in error() and "('you can only read'); set HF_TOKEN" in error()
    hub.refused = {"/lfs/": (507, "storage is full")}
    assert "cannot upload to" in error() and error().endswith(
        "; run the command again with --force, since d is written"
    )
    hub.refused = {}
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert error().startswith(
        f"error: {hub.endpoint} does not accept the token; set HF_TOKEN to a token with write access"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert error().endswith(
        f"needs a token; set HF_TOKEN to a token with write access, from {hub.endpoint}/settings/tokens"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert error().startswith("error: cannot upload to http://127.0.0.1:9/owner/cat: ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids uploading" in error()
