"""`llm tokenize`: tokens, ids and text agree."""

import json
from pathlib import Path

import pytest

from llmcli.data.conversations.chat_template import with_chat_template
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from tests.cli.commands.test_chat import write_chat_model
from tests.conftest import Llm
from tests.golden.models import BPE as BPE_WITHOUT_CHAT_TOKENS

PAIRS = [("Who sat on the mat?", "The cat."), ("りんご?", "<|im_end|> 🍎")]
RECORDS = "".join(
    json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}) + "\n"
    for question, answer in PAIRS
)


@pytest.fixture
def pairs() -> str:
    Path("pairs.jsonl").write_text(RECORDS, "utf-8")
    return "pairs.jsonl"


@pytest.fixture
def chat_model() -> Path:
    return write_chat_model(Path("model.safetensors"))


def test_a_conversation_is_shown_with_the_learned_tokens_marked(llm: Llm, chat_model: Path, pairs: str) -> None:
    answer = llm("tokenize", "--chat", pairs)
    assert answer.exit_code == 0
    for number, (question, reply) in enumerate(PAIRS, 1):
        context = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert f"{pairs} line {number}\n{context}⟦{reply}<|im_end|>⟧\n" in answer.stdout
    assert answer.stderr.startswith("2 conversations with ") and "ChatML" not in answer.stderr
    assert llm("tokenize", "--chat", pairs, "-q").stderr == ""


def test_json_of_a_conversation_is_a_line_of_ids_tokens_and_mask(llm: Llm, chat_model: Path, pairs: str) -> None:
    tokenizer = Tokenizer.from_json(load(chat_model).tokenizer_json)
    lines = [json.loads(line) for line in llm("tokenize", "--chat", pairs, "--json").stdout.splitlines()]
    for line, (question, reply) in zip(lines, PAIRS, strict=True):
        assert set(line) == {"ids", "tokens", "mask"} and len(line["ids"]) == len(line["tokens"]) == len(line["mask"])
        learned = [i for i, is_learned in zip(line["ids"], line["mask"], strict=True) if is_learned]
        assert learned == [*tokenizer.encode(reply), 2]
        newline = tokenizer.encode("\n")
        context = [1, *tokenizer.encode(f"user\n{question}"), 2, *newline, 1, *tokenizer.encode("assistant\n")]
        others = [i for i, is_learned in zip(line["ids"], line["mask"], strict=True) if not is_learned]
        assert others == [*context, *newline]
        assert line["tokens"][0] == "<|im_start|>"
    assert set(lines[0]["mask"]) == {0, 1}


def test_a_model_without_a_template_is_shown_in_chatml(llm: Llm, tiny_model: Path, pairs: str) -> None:
    answer = llm("tokenize", "--chat", pairs, "--json")
    assert "model.safetensors has no chat template; shown in ChatML" in answer.stderr
    Path("tok.json").write_text(load(tiny_model).tokenizer_json, "utf-8")
    same = llm("tokenize", "--chat", pairs, "-m", "tok.json", "--json")
    assert same.stdout == answer.stdout and "tok.json has no chat template" in same.stderr


def test_a_tokenizer_without_chat_tokens_gets_them(llm: Llm, pairs: str) -> None:
    path = BPE_WITHOUT_CHAT_TOKENS
    line = llm("tokenize", "--chat", pairs, "-m", path, "--json").stdout.splitlines()[0]
    assert json.loads(line)["ids"][0] == Tokenizer.from_json(path.read_text("utf-8")).vocab_size


def test_a_file_that_cannot_be_shown_is_one_line(llm: Llm, tiny_model: Path) -> None:
    for text, message in [
        ("", "pairs.jsonl has no conversations; expected records with"),
        (RECORDS + '{"messages": 5}\n', "pairs.jsonl line 3"),
    ]:
        Path("pairs.jsonl").write_text(text, "utf-8")
        answer = llm("tokenize", "--chat", "pairs.jsonl")
        assert answer.exit_code == 1 and message in answer.stderr and len(answer.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_conversation_that_the_template_refuses_is_named(llm: Llm, tiny_model: Path, pairs: str) -> None:
    model = load(tiny_model)
    source = (
        "{% for m in messages %}{{ raise_exception('no fruit') if 'りんご' in m.content else m.content }}{% endfor %}"
    )
    model.tokenizer_config_json = with_chat_template(model.tokenizer_config_json, source)
    save(tiny_model, model)
    refused = "pairs.jsonl line 2: the model's chat template refuses these messages: no fruit\n"
    train = ("train", "--from", tiny_model, "--steps", 1, "-o", "new.safetensors")
    for words in (("tokenize", "--chat"), ("eval",), train):
        answer = llm(*words, pairs)
        assert answer.exit_code == 1 and answer.stderr.endswith(refused), answer.stderr
