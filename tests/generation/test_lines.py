"""Lists: which of the generated lines are kept, and when generation ends."""

from collections.abc import Iterator

import pytest

from llmcli.config import Grammar, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation import lines as module
from llmcli.generation.batch import BatchResult
from llmcli.generation.engine.requests import Finished
from llmcli.generation.lines import LineGenerator
from llmcli.generation.token_healing import beginning_of_line
from tests.conftest import TEXT

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch):
    """`generator(texts, ...)` makes a LineGenerator whose model generates text `i % len(texts)` for seed i; "..." at
    the end of a text stands for a text that is cut off."""

    def make(texts, count, **fields):
        def decode_batch(runtime, tokenizer, requests) -> Iterator[BatchResult]:
            for request in requests:
                assert ("\n" in request.sampling.stop) == (request.sampling.grammar is None)
                text = texts[request.sampling.seed % len(texts)]
                reason = "length" if text.endswith("...") else "stop"
                yield BatchResult(text.removesuffix("..."), finished=Finished(reason, 1))

        monkeypatch.setattr(module, "decode_batch", decode_batch)
        fields = {"prompt": "", "sampling": SamplingConfig()} | fields
        return LineGenerator(None, TOKENIZER, count=count, **fields)

    return make


def test_lines_are_different_new_and_complete(generator) -> None:
    lines = generator(["Ann", "Ben ", "Ann", "", "Known", "Cut...", "りんご"], 3, known=lambda some: some & {"Known"})
    assert list(lines) == ["Ann", "Ben", "りんご"]
    rounds, rest = divmod(module.CONCURRENT, 7)  # one round is enough; all its texts are counted
    assert (lines.generated, lines.yielded, lines.dropped) == (module.CONCURRENT, 3, 1)
    assert lines.incomplete == 2 * rounds + (rest > 3) + (rest > 5)
    assert lines.duplicates == module.CONCURRENT - lines.incomplete - 4


def test_a_prompt_is_the_beginning_of_each_line(generator) -> None:
    assert list(generator(["na", "n"], 2, prompt="List:\nAn")) == ["Anna", "Ann"]


def test_lines_of_a_form_end_where_it_is_complete(generator) -> None:
    sampling = SamplingConfig(grammar=Grammar("regex", "An+|a\nb"))
    lines = generator(["An", "a\nb", "Ann"], 2, sampling=sampling)
    assert list(lines) == ["An", "Ann"] and lines.incomplete == module.CONCURRENT // 3 + 1


def test_generation_ends_if_there_are_no_more_new_lines(generator) -> None:
    for count, limit in [(5, 200), (50, 1000)]:
        lines = generator(["a", "b", "c"], count)
        assert list(lines) == ["a", "b", "c"], (count, limit)
        assert (lines.generated, lines.duplicates) == (limit, limit - 3), (count, limit)


def test_a_line_begins_after_a_line_break_or_as_a_document() -> None:
    assert beginning_of_line(TOKENIZER.for_model(None)) == TOKENIZER.encode("\n")
    assert beginning_of_line(TOKENIZER.for_model(b"a\n")) == TOKENIZER.encode("\n")
    assert beginning_of_line(TOKENIZER.for_model(b"ab")) == [TOKENIZER.eos_id]
