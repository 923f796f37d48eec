"""`llm serve` with the clients that people use: the openai SDK, LangChain, and lm_eval.

The last one installs packages that collide with ours, so it runs in an environment of its own, whose directory
LLMCLI_TEST_CLIENTS names: `python -m venv DIR && DIR/bin/pip install 'lm-eval[api]'`.
"""

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')

import llmcli
from llmcli.config import ModelConfig
from llmcli.data.conversations.chat_template import CHATML, with_chat_template
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import save
from tests.conftest import TEXT, random_checkpoint
from tests.server.processes import serving

pytestmark = pytest.mark.slow
CLIENTS = os.environ.get("LLMCLI_TEST_CLIENTS")
needs_clients = pytest.mark.skipif(
    CLIENTS is None, reason="needs LLMCLI_TEST_CLIENTS, an environment with lm-eval (top of this file)"
)
QUESTION = {"role": "user", "content": "What did the cat do?"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with random weights that can chat; text with bytes that its corpus does not have is never written."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 256)
    checkpoint = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    record = checkpoint.record | {"seen_bytes": bytes(sorted(set(b"The cat sat on the mat.\n"))).hex()}
    path = tmp_path_factory.mktemp("clients") / "tiny.safetensors"
    save(path, replace(checkpoint, record=record, tokenizer_config_json=with_chat_template("{}", CHATML)))
    return path


@pytest.fixture(scope="module")
def url(model):
    with serving(model) as process:
        yield f"{process.url}/v1"


@pytest.fixture(scope="module")
def local(model):
    return llmcli.load(model)


@pytest.fixture
def sdk(url):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=url, api_key="any", max_retries=0)


def test_openai_completions_and_models(sdk, local):
    expected = local.generate("The cat", temperature=0, max_tokens=12)
    answer = sdk.completions.create(model="tiny", prompt="The cat", temperature=0, max_tokens=12, logprobs=2)
    assert answer.choices[0].text == expected
    assert answer.usage.completion_tokens == 12
    assert all(max(top.values()) >= logprob for top, logprob in zip(
        answer.choices[0].logprobs.top_logprobs, answer.choices[0].logprobs.token_logprobs, strict=True
    ))  # fmt: skip
    assert [one.id for one in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").owned_by == "llmcli"
    stream = sdk.completions.create(model="tiny", prompt="The cat", temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_openai_chat(sdk, local):
    expected = local.chat([QUESTION], temperature=0, max_tokens=12)
    fields = {"model": "tiny", "messages": [QUESTION], "temperature": 0, "max_tokens": 12}
    answer = sdk.chat.completions.create(**fields, logprobs=True, top_logprobs=3)
    assert answer.choices[0].message.content == expected
    assert all(len(token.top_logprobs) == 3 for token in answer.choices[0].logprobs.content)
    chunks = list(sdk.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_openai_errors(sdk, url):
    import openai

    with pytest.raises(openai.NotFoundError, match="there is no model"):
        sdk.completions.create(model="none", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature must be") as error:
        sdk.completions.create(model="tiny", prompt="x", temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="tools are not supported"):
        sdk.chat.completions.create(
            model="tiny", messages=[QUESTION], tools=[{"type": "function", "function": {"name": "f"}}]
        )
    stream = sdk.completions.create(model="tiny", prompt="The", max_tokens=30_000, temperature=0, stream=True)
    next(iter(stream))
    stream.close()  # the server goes on with others
    assert sdk.completions.create(model="tiny", prompt="The", max_tokens=1).choices


def test_langchain(url, local):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=url, api_key="any", model="tiny", temperature=0, max_tokens=8)
    expected = local.chat([QUESTION], temperature=0, max_tokens=8)
    assert chat.invoke(QUESTION["content"]).content == expected
    assert "".join(chunk.content for chunk in chat.stream(QUESTION["content"])) == expected
    text = langchain.OpenAI(base_url=url, api_key="any", model="tiny", temperature=0, max_tokens=8)
    assert text.invoke("The cat") == local.generate("The cat", temperature=0, max_tokens=8)


def run(*words, **environment):
    command = [str(Path(CLIENTS) / "bin" / words[0]), *map(str, words[1:])]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    result = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


TASK = """
task: local_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
CHOICES = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
GENERATED = """
output_type: generate_until
doc_to_target: "{{target}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, temperature: 0}
metric_list: [{metric: exact_match}]
"""
QUESTIONS = [
    {"question": "The cat", "choices": [" sat on the mat.", " ate the hat."], "answer": 0},
    {"question": "The dog", "choices": [" sat on the mat.", " ate the hat."], "answer": 1},
    {"question": "りんご", "choices": ["を食べる。", "。"], "answer": 0},
]


def log_likelihood(local, question, choice):
    """(log probability of a choice after a question, whether it is the greedy text) from the losses that `llm eval`
    sums. As lm_eval does, the choice has the tokens of the joined text after those of the question alone."""
    before = local.tokenize(question)
    ids = before + local.tokenize(question + choice)[len(before) :]
    local.runtime.rewind()
    losses, correct = local.runtime.score(np.array([ids]))
    start = len(before) - 1
    return -losses[0, start:].sum(), bool(correct[0, start:].all())


@needs_clients
def test_lm_eval_gives_the_log_likelihoods_of_llm_eval(url, local, tmp_path):
    data = tmp_path / "questions.jsonl"
    options = {"temperature": 0, "max_tokens": 8, "stop": "."}
    targets = [local.generate(one["question"], literal=True, **options) for one in QUESTIONS]  # lm_eval sends token ids
    rows = [one | {"target": target} for one, target in zip(QUESTIONS, targets, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for kind, more in (("choices", CHOICES), ("generated", GENERATED)):
        (tmp_path / f"{kind}.yaml").write_text(TASK.format(kind=kind, data=data) + more, "utf-8")
    run(
        "lm_eval", "--model", "local-completions", "--tasks", "local_choices,local_generated",
        "--include_path", tmp_path,
        "--model_args", f"model=tiny,base_url={url}/completions,num_concurrent=2,max_length=256", "--log_samples",
        "--output_path", tmp_path / "out", OPENAI_API_KEY="any", HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    samples = {
        kind: [json.loads(line) for line in next((tmp_path / "out").rglob(f"samples_{kind}*")).open()]
        for kind in ("local_choices", "local_generated")
    }
    for sample in samples["local_choices"]:
        doc = sample["doc"]
        for choice, [[logprob, greedy]] in zip(doc["choices"], sample["resps"], strict=True):
            expected, expected_greedy = log_likelihood(local, doc["question"], choice)
            assert math.isclose(float(logprob), expected, abs_tol=1e-6), (doc, choice)
            assert str(greedy) == str(expected_greedy)
    assert sorted(sample["resps"][0][0] for sample in samples["local_generated"]) == sorted(targets)
