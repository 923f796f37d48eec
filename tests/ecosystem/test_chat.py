"""Greedy answers of `llm chat`: those of transformers and of llama.cpp, which apply the template in the file."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmcli.cli.app import app
from tests.ecosystem.conftest import LlamaCpp
from tests.platforms import FULL

TOKENS = 40  # at most, in an answer


def run(*words: object, stdin: bytes = b"") -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


class Transformers:
    """A model in a directory, at temperature 0."""

    def __init__(self, directory: Path) -> None:
        import torch
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def answer(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """What `llm chat --json` says of its own: the ids of the tokens, the text, and why it ended."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = self._model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
        ids, ends = ids[inputs["input_ids"].shape[1] :], self._model.generation_config.eos_token_id
        is_ended = ids[-1] in (ends if isinstance(ends, list) else [ends])
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {
            "ids": ids[:-1] if is_ended else ids,
            "content": text.removesuffix("\ufffd"),  # a character that is incomplete at the end, which we leave out
            "finish_reason": "stop" if is_ended else "length",
        }


def ours(answer: str) -> dict[str, Any]:
    """The same of an answer of `llm chat --json`."""
    read = json.loads(answer)
    ids = [token["id"] for token in read["tokens"]]
    return {"ids": ids, "content": read["content"], "finish_reason": read["finish_reason"]}


PAIRS = (
    ("What is red?", "A tomato is red."),
    ("What is blue?", "The sea is blue, and the sky too."),
    ("Who are you?", "I am a small model."),
    ("赤いものは何ですか。", "りんごが赤いです。🍎"),
    ("青いものは何ですか。", "海と空が青いです。"),
    ("How do you say sea in Japanese?", "海"),
)
SYSTEM = "Shout."
# any answer to them, but the same; names of control tokens in a message are text here, and not in the other programs
UNKNOWN = ("  Who is red, and what is the sky?\n", "空は何ですか？", 'ZZZ 123\n\n\t"é"', "🍎")


def records() -> Iterator[list[dict[str, str]]]:
    """Conversations of one turn, of one turn with a system message, and of two turns."""
    for i, (question, answer) in itertools.product(range(len(PAIRS)), PAIRS):
        asked, answered = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        yield [asked, answered]
        yield [{"role": "system", "content": SYSTEM}, asked, answered | {"content": f"{answer.upper()}!"}]
        yield [{"role": "user", "content": PAIRS[i][0]}, {"role": "assistant", "content": PAIRS[i][1]}, asked, answered]


@dataclass(frozen=True)
class Trained:
    """A model, and its exports in the programs that read them."""

    path: Path
    transformers: Transformers
    llama_cpp: LlamaCpp


@pytest.fixture(scope="module", params=["bpe", "char"] if FULL else ["bpe"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    directory = tmp_path_factory.mktemp(request.param)
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) for messages in records())
    (directory / "chats.jsonl").write_text("\n".join(lines), "utf-8")
    path, hf, gguf = directory / "m.safetensors", directory / "hf", directory / "m.gguf"
    run(
        "train", directory / "chats.jsonl", "-o", path, "--steps", 100, "--layers", 2, "--width", 64, "--context", 192,
        "--tokenizer", request.param, "--seed", 1, "--val", 0, "-q",
    )  # fmt: skip
    run("export", path, hf, "--to", "hf", "--dtype", "f32")
    run("export", path, gguf, "--to", "gguf", "--dtype", "f32")
    return Trained(path, Transformers(hf), LlamaCpp(gguf, context=192))


def of_llama_cpp(model: LlamaCpp, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The answer of its chat completion, which applies the template in the file."""
    request = {"messages": messages, "max_tokens": TOKENS, "temperature": 0.0, "cache_prompt": False}
    result = model.post("/v1/chat/completions", request | {"return_tokens": True, "verbose": True})
    choice, ids = result["choices"][0], result["__verbose"]["tokens"]
    is_ended = choice["finish_reason"] == "stop"
    return {
        "ids": ids[:-1] if is_ended else ids,
        "content": choice["message"]["content"] or "",
        "finish_reason": choice["finish_reason"],
    }


CONVERSATIONS = [
    *([question] for question in (*dict(PAIRS), *UNKNOWN)),
    [PAIRS[0][0], PAIRS[4][0]], [PAIRS[3][0], UNKNOWN[1], PAIRS[1][0]],
]  # fmt: skip


def test_answers_of_a_trained_model_are_the_same_in_all_programs(trained: Trained) -> None:
    for system, questions in itertools.product(("", SYSTEM), CONVERSATIONS):
        lines = "\n".join(json.dumps({"role": "user", "content": question}) for question in questions)
        words = ("chat", "-m", trained.path, "-t", 0, "-n", TOKENS, "--json", *(("--system", system) if system else ()))
        messages = [{"role": "system", "content": system}] if system else []
        for question, line in zip(questions, run(*words, stdin=lines.encode()).splitlines(), strict=True):
            messages.append({"role": "user", "content": question})
            answer = ours(line)
            assert answer == trained.transformers.answer(messages)
            assert answer == of_llama_cpp(trained.llama_cpp, messages)
            messages.append({"role": "assistant", "content": answer["content"]})


def test_a_trained_model_has_learned_its_answers(trained: Trained) -> None:
    for question, answer in PAIRS:
        said = run("chat", question, "-m", trained.path, "-t", 0).rstrip("\n")
        shouted = run("chat", question, "-m", trained.path, "-t", 0, "--system", SYSTEM).rstrip("\n")
        assert (said, shouted) == (answer, f"{answer.upper()}!")
