"""Next words of models over tiny vocabularies, whose probabilities are computed by hand."""

import math
import re

import numpy as np
import pytest

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation import next_words as next_words_module
from llmcli.generation.next_words import NextWord, NextWords, next_words
from llmcli.generation.token_healing import Prompt, TokenizationSearch
from tests.generation import fakes
from tests.generation.fakes import FakeRuntime

TOLERANCE = 1e-6  # logits are float32


def tree(context, vocab_size, after, prompt_length=1):
    """A model given by `after`, which maps the tokens since the prompt to {next token: probability}."""

    def logits_of(cached):
        logits = np.full(vocab_size, -math.inf, np.float32)
        for token, probability in after(cached[prompt_length:]).items():
            logits[token] = math.log(probability)
        return logits + np.float32(2)

    return FakeRuntime(context, logits_of)


class Table(fakes.Table):
    """A table of a list of texts. Each character of a prompt becomes token 1, except those of its `tail`."""

    def __init__(self, texts, tail=""):
        super().__init__(*texts)
        self._tail = tail

    def encode(self, text):
        return [1] * (len(text) - len(self._tail)) + super().encode(self._tail)

    def split_last_word(self, text):
        return text[: len(text) - len(self._tail)], self._tail


def next_words_of(branches, *, prompt=".", tail="", context=100, **options):
    """The next words of a model {tokens joined by "|": {token: probability}}; elsewhere the text ends."""
    written = ["\x00", *dict.fromkeys(token for after in branches.values() for token in after if token != "END")]
    ids = {"END": 0} | {token: n for n, token in enumerate(written, 1)}
    paths = {
        tuple(ids[token] for token in path.split("|") if token): {ids[token]: p for token, p in after.items()}
        for path, after in branches.items()
    }
    model = tree(context, len(written) + 1, lambda path: paths.get(path, {0: 1.0}), len(prompt) - len(tail))
    return next_words(model, Table(written, tail), prompt, **options)


def probabilities_of(result):
    return {word.text: word.probability for word in result.words}


def first_word(text, *, ends=False):
    """The first word when a model spells `text` byte by byte with probability 1."""
    data = text if isinstance(text, bytes) else text.encode()
    table = Table([b"."] + [bytes([n]) for n in range(256)])  # id of byte n: n + 2
    model = tree(120, 258, lambda path: {data[len(path)] + 2: 1.0} if len(path) < len(data) else {0: 1.0})
    result = next_words(model, table, ".")
    assert sum(probabilities_of(result).values()) + result.unexplored == pytest.approx(1, abs=TOLERANCE)
    assert len(result.words) == 1
    if not ends:
        assert model.evaluations <= len(data)  # the word was complete before the text's end
    return result.words[0].text


# ---- spellings


def test_sampling_settings_change_the_probability_of_each_token():
    branches = {"": {" a": 0.8, " b": 0.2}, " a": {"x": 0.75, ".": 0.25}, " a|x": {".": 1.0}, " b": {".": 1.0}}
    flat = 0.8**0.5 + 0.2**0.5, 0.75**0.5 + 0.25**0.5
    expected = {
        "ax": 0.8**0.5 / flat[0] * 0.75**0.5 / flat[1], "a": 0.8**0.5 / flat[0] * 0.25**0.5 / flat[1],
        "b": 0.2**0.5 / flat[0],
    }  # fmt: skip
    for sampling, probabilities in (
        (SamplingConfig(temperature=2, min_p=0), expected),
        (SamplingConfig(temperature=0), {"ax": 1}),
        (SamplingConfig(temperature=1, min_p=0, top_p=0.75), {"ax": 1}),
        (SamplingConfig(temperature=1, min_p=0.3), {"ax": 0.75, "a": 0.25}),
    ):
        result = next_words_of(branches, sampling=sampling)
        assert probabilities_of(result) == pytest.approx(probabilities, abs=TOLERANCE), sampling
    assert {word.text: word.added for word in result.words} == {"ax": " ax", "a": " a"}


def test_words_are_ordered_by_probability_then_alphabetically():
    result = next_words_of({"": {" pear": 0.25, " fig": 0.25, " kiwi": 0.3, " yam": 0.2}})
    assert [word.text for word in result.words] == ["kiwi", "fig", "pear", "yam"]


def test_a_character_of_several_tokens_is_followed_to_its_end():
    branches = {
        "": {"あ": 0.1, "A": 0.9},
        "A": {"B": 0.5, "C": 0.5},
        "あ": {"!": 1.0},
        "A|B": {"!": 1.0},
        "A|C": {"D": 1.0},
        "A|C|D": {"!": 1.0},
    }
    ids = {"あ": 1, "A": 2, "B": 3, "C": 4, "D": 5, "!": 6}
    table = Table(["あ", b"\xe3\x81", b"\x82", b"\x84", b"\xe3\x81\x82", "!"])  # あ whole; あ in two; いあ in three
    paths = {tuple(ids[t] for t in k.split("|") if t): {ids[t]: p for t, p in v.items()} for k, v in branches.items()}
    result = next_words(tree(50, 7, lambda path: paths.get(path, {0: 1.0})), table, ".")
    assert probabilities_of(result) == pytest.approx({"あ": 0.1 + 0.45, "いあ": 0.45}, abs=TOLERANCE)


def reference_word(text):
    """The first word of a complete text of these characters, by a regular expression."""
    text = text.lstrip(" \t\u3000")
    return re.match(r"\w+('\w+)*|.", text, re.DOTALL)[0] if text else "<end>"


# ---- what a word is


def test_a_word_is_a_run_of_one_class():
    for text, word in [
        (" apple pie", "apple"),
        ("apple.", "apple"),
        ("app\u0301le.", "app\u0301le"),
        ("\t \u3000x ", "x"),  # white space before a word is no part of it
        ("\n\nfoo", "\n"),  # a line's end is a word
        ("  \nfoo", "\n"),
        ("...", "."),
        ("“quoted”", "“"),
        ("😀😀", "😀"),
        ("don't go", "don't"),
        ("rock’n’roll ", "rock’n’roll"),
        ("'tis", "'"),
        ("it''s", "it"),
        ("well-known", "well"),
        ("3.14", "3"),
        ("b2b,", "b2b"),
        ("snake_case x", "snake_case"),
        ("nai\u0308ve x", "nai\u0308ve"),
        ("слово дальше", "слово"),
        ("人々は", "人々"),
        ("コーヒーを", "コーヒー"),
        ("ひらがな漢字", "ひらがな"),
        ("\u304b\u3099く。", "\u304b\u3099く"),  # か with a combining mark
        ("、そして", "、"),
        ("漢字abc", "漢字"),
        ("𠮷野家の", "𠮷野家"),
    ]:
        assert first_word(text) == word, (text, word)


def test_the_end_of_text_ends_a_word():
    for text, word in [
        ("apple", "apple"),
        ("", "<end>"),
        ("  \t", "<end>"),
        ("dogs'", "dogs"),  # as in "dogs' tails"
        ("dogs’", "dogs"),
    ]:
        assert first_word(text, ends=True) == word, (text, word)


def test_invalid_utf_8_is_never_part_of_a_word():
    model = tree(50, 5, lambda path: {2: 0.25, 3: 0.5, 4: 0.25} if len(path) < 3 else {0: 1.0})
    result = next_words(model, Table([".", "a", b"\xff", " "]), ".")
    # over the eight texts of three tokens " " and "a"
    expected = {"a": 4 / 8, "aa": 2 / 8, "aaa": 1 / 8, "<end>": 1 / 8}
    assert probabilities_of(result) == pytest.approx(expected, abs=TOLERANCE)
    assert result.unexplored == pytest.approx(0, abs=TOLERANCE)


def test_probability_on_invalid_tokens_alone_is_unexplored():
    model = tree(50, 4, lambda path: {2: 1.0} if len(path) < 3 else {3: 1.0})
    result = next_words(model, Table([".", "a", b"\xff"]), ".")
    assert result.words == () and result.unexplored == pytest.approx(1)


# ---- the unexplored rest


def test_words_that_do_not_fit_the_context_are_unexplored():
    model = tree(10, 4, lambda path: {2: 1.0} if not path else {2: 0.75, 3: 0.25})
    result = next_words(model, Table([".", "a", "!"]), ".")
    expected = {"a" * n: 0.25 * 0.75 ** (n - 1) for n in range(1, 10)}  # one of the ten tokens is the prompt's
    assert probabilities_of(result) == pytest.approx(expected, abs=TOLERANCE)
    assert result.unexplored == pytest.approx(0.75**9, abs=TOLERANCE)


def test_an_endlessly_branching_model_is_evaluated_a_limited_number_of_times():
    model = tree(100, 4, lambda path: {2: 0.5, 3: 0.5})
    result = next_words(model, Table([".", "a", "b"]), ".")
    assert result.words == ()
    assert result.unexplored == pytest.approx(1)
    assert model.evaluations == result.evaluations == next_words_module.MAX_EVALUATIONS


def test_the_search_ends_when_less_than_a_thousandth_is_left():
    model = tree(100, 4, lambda path: {2: 1.0} if not path else {2: 0.08, 3: 0.92})
    result = next_words(model, Table([".", "a", "!"]), ".")
    assert [word.text for word in result.words] == ["a", "aa", "aaa"]
    assert result.unexplored == pytest.approx(0.08**3, abs=TOLERANCE)


def test_very_unlikely_spellings_are_unexplored():
    result = next_words_of({"": {" apple": 1 - 3e-8, " pear": 3e-8}})
    assert [word.text for word in result.words] == ["apple"]
    assert result.unexplored == pytest.approx(3e-8, rel=0.1)


# ---- prompts


def test_the_end_of_a_long_prompt_is_used_with_space_for_a_word():
    class Counting(Table):
        def encode(self, text):
            return list(range(1, len(text) + 1))

    for context, prompt_tokens in ((40, 24), (20, 10), (5, 3), (2, 1)):  # the word has at most half of the context
        model = tree(context, 31, lambda path: {0: 1.0})
        next_words(model, Counting("abcdefghijklmnopqrstuvwxyz0123"), "x" * 30)
        assert model.seen[0] == [*range(31 - prompt_tokens, 31)], context


def test_only_letters_right_after_letters_continue_the_last_word():
    branches = {"": {"s": 0.25, " s": 0.25, "!": 0.25, "\n": 0.25}}
    after_letter = {(word.text, word.continues) for word in next_words_of(branches, prompt="apple").words}
    assert after_letter == {("s", True), ("s", False), ("!", False), ("\n", False)}
    assert not any(word.continues for word in next_words_of(branches, prompt="apple ").words)
    assert not any(word.continues for word in next_words_of(branches, prompt="りんご").words)


def test_tokens_added_together_give_the_words_of_one_at_a_time(monkeypatch):
    tokenizer = Tokenizer.train_bpe(["the cat's mat isn't 3,5 élan été. りんごを食べる don'\n" * 9], 330)
    for prompt in ["the cat ", "the ca", "don", "don'", "été", "りん"]:
        monkeypatch.setattr(next_words_module, "MAX_EVALUATIONS", 60)
        found = []
        for together in (True, False):
            if not together:
                monkeypatch.setattr(next_words_module, "_ends_after_letter", lambda spelled: False)
            model = FakeRuntime(40, lambda cached: np.random.default_rng(cached).normal(0, 6, tokenizer.vocab_size))
            found.append(next_words(model, tokenizer, prompt))
        monkeypatch.undo()
        fast, slow = found
        assert fast.evaluations == slow.evaluations
        assert fast.unexplored == pytest.approx(slow.unexplored, abs=1e-9)
        assert {(word.text, word.continues, word.added, word.token) for word in fast.words} == {
            (word.text, word.continues, word.added, word.token) for word in slow.words
        }
        for word, other in zip(fast.words, slow.words, strict=True):
            assert word.probability == pytest.approx(other.probability, rel=1e-9)


def test_the_unexplored_rest_counts_as_one_word_in_the_entropy() -> None:
    assert NextWords((NextWord("a", 0.5), NextWord("b", 0.25)), 0.25, 1).entropy == pytest.approx(1.5)


def test_tokens_that_all_spellings_share_are_processed_once():
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat. The cats sat.\n" * 9], 300)
    model = FakeRuntime(40, lambda cached: np.random.default_rng(cached[-1]).normal(0, 4, tokenizer.vocab_size))
    prompt = Prompt.of("the cat sat", tokenizer)
    search = TokenizationSearch(model, tokenizer.vocabulary, prompt.head, prompt.tail)
    search.read(0, 0)
    tail, (first, *others) = search.tail, [(*prompt.tail, token) for token in (20, 30, 40)]
    model.seen.clear()
    together = search.logits_after([first, *others])
    assert [ids[len(prompt.head) :] for ids in model.seen] == [[*first], *map(list, others)]  # the tail is cached
    model.seen.clear()
    alone = [search.logits_after([path])[0] for path in [(50, 60), first, *others]]
    processed = [ids[len(prompt.head) :] for ids in model.seen]
    assert processed == [[50], [50, 60], [*tail], [*first], *map(list, others)]  # the tail once, after another path
    np.testing.assert_array_equal(together, alone[1:])
