"""Greedy answers of `llm chat`: those of transformers and of llama.cpp, which apply the template in the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmcli.cli.app import app

TOKENS = 32
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "How many days has a leap year?",
    "Translate to French: Good morning, my friend.",
    "Why is the sky blue? Answer in one sentence.",
    "What is 12 + 30?",
    "def add(a, b):\n    # what is missing here?",
    "日本の首都はどこですか。",
    "Name three fruits, please!  ",
    "Who are you?",
)


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
        ids, end = ids[inputs["input_ids"].shape[1] :], self.tokenizer.eos_token_id
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {
            "ids": ids[:-1] if ids[-1] == end else ids,
            "content": text.removesuffix("\ufffd"),  # a character that is incomplete at the end, which we leave out
            "finish_reason": "stop" if ids[-1] == end else "length",
        }


def ours(answer: str) -> dict[str, Any]:
    """The same of an answer of `llm chat --json`."""
    read = json.loads(answer)
    ids = [token["id"] for token in read["tokens"]]
    return {"ids": ids, "content": read["content"], "finish_reason": read["finish_reason"]}


# ---- SmolLM2


@pytest.fixture(scope="module")
def smol_theirs(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Transformers:
    """The same weights in float32."""
    directory = tmp_path_factory.mktemp("smol") / "hf"
    run("export", smollm2, directory, "--to", "hf", "--dtype", "f32")
    return Transformers(directory)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_equals_that_of_transformers(smollm2: Path, smol_theirs: Transformers, question: str) -> None:
    answer = ours(run("chat", question, "-m", smollm2, "-t", 0, "-n", TOKENS, "--json"))
    assert answer == smol_theirs.answer([{"role": "user", "content": question}])
