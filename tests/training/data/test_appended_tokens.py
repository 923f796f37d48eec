"""A base model without the tokens of a chat template: it gets rows for them, and these are trained, even with LoRA."""

from dataclasses import replace

import numpy as np
import pytest

from llmcli.config import EMBEDDING, HEAD, ModelConfig
from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import IM_END, IM_START, Tokenizer
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.training.data.inputs import with_chat_format
from llmcli.training.data.prepare import Prepared
from llmcli.training.loop.events import Done
from llmcli.training.planning.plan import PlanRequest
from tests.conftest import TEXT, random_checkpoint
from tests.golden.models import BPE
from tests.training.chats import inputs
from tests.training.plans import prepare
from tests.training.small_runs import run_to_end

EMBEDDINGS = (EMBEDDING, HEAD)


def base(rows: int = 0, *, tied: bool = False, context: int = 64) -> Checkpoint:
    """A model with random weights, whose tokenizer's only control token is the end of text, and `rows` rows beyond its
    vocabulary."""
    tokenizer = Tokenizer.from_json(BPE.read_text("utf-8"))
    config = ModelConfig(tokenizer.vocab_size + rows, 32, 64, 2, 4, 2, 8, context, tie_word_embeddings=tied)
    return random_checkpoint(config, tokenizer_json=tokenizer.to_json())


def test_new_rows_are_the_mean_of_those_in_use() -> None:
    for tied in [False, True]:
        for rows in [0, 1, 7]:
            before = base(rows, tied=tied)
            used = loading.open_tokenizer(before).vocab_size
            after, template, new_tokens = with_chat_format(before)
            assert template is None and new_tokens == 2
            tokenizer = loading.open_tokenizer(after)
            assert [tokenizer.control_ids[name] for name in (IM_START, IM_END)] == [used, used + 1]
            assert tokenizer.eos_id == before.config.eos_token_id
            assert after.config == replace(before.config, vocab_size=max(used + rows, used + 2))
            for name, shape in after.config.tensor_shapes().items():
                found, old = after.tensors[name], before.tensors[name]
                assert found.shape == shape
                if name in EMBEDDINGS:
                    assert np.array_equal(found[:used], old[:used])
                    assert np.allclose(found[used : used + 2], old[:used].mean(axis=0, dtype=np.float64))
                    assert np.array_equal(found[used + 2 :], old[used + 2 :])
                else:
                    assert np.array_equal(found, old)


def test_a_base_with_the_tokens_of_chatml_is_left_as_it_is() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 64)
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    assert with_chat_format(model) == (model, None, 0)


def test_a_base_with_a_template_keeps_it() -> None:
    model = base()
    model.tokenizer_config_json = '{"chat_template": "{{ messages[0].content }}"}'
    found, template, new_tokens = with_chat_format(model)
    assert found is model and new_tokens == 0 and template is not None
    assert template.source == "{{ messages[0].content }}"


def fine_tuning(start: Checkpoint, **request: object) -> tuple[Prepared, Checkpoint]:
    """(a run on conversations, the base model with the tokens that it needs)"""
    extended, template, new_tokens = with_chat_format(start)
    settings = {"steps": 3, "batch_tokens": 256, "dtype": "float32"} | request
    ready = prepare(
        PlanRequest(**settings), Corpus(()), tokenizer=loading.open_tokenizer(extended), base=extended.config,  # type: ignore[arg-type]
        conversations=replace(inputs(), template=template, new_tokens=new_tokens),
    )  # fmt: skip
    return ready, extended


def fine_tune(start: Checkpoint, **request: object) -> Done:
    ready, extended = fine_tuning(start, **request)
    return run_to_end(ready, extended)


@pytest.mark.slow
def test_with_lora_the_new_rows_are_trained_and_no_others() -> None:
    for tied in [False, True]:
        start = base(context=128, tied=tied)
        used = loading.open_tokenizer(start).vocab_size
        done = fine_tune(start, lora=2, steps=5)
        assert done.best_step > 0 and done.checkpoint.tokenizer_config_json.count("chat_template") == 1
        for name in EMBEDDINGS[: 1 if tied else 2]:
            found, old = done.checkpoint.tensors[name], start.tensors[name]
            assert np.array_equal(found[:used], old)
            assert (np.abs(found[used:] - old.mean(axis=0)) > 1e-6).any(axis=1).all()
        assert done.checkpoint.config.extra_eos_ids == (used + 1,)


@pytest.mark.slow
def test_full_fine_tuning_trains_all_rows_and_measures_plain_text() -> None:
    """The text is one that the base model generates, since there is no other."""
    start = base(context=128)
    done = fine_tune(start)
    name = EMBEDDINGS[0]
    assert done.checkpoint.tensors[name].shape[0] == start.tensors[name].shape[0] + 2
    assert done.score.bits_per_byte <= done.base_score.bits_per_byte * 1.01
    scores = done.checkpoint.record.document["plain_text"]
    assert scores["from"] == "text that the base model generates"
    assert scores["before"] > 0 and scores["after"] > 0
