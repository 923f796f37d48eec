"""Training text that repeats held-out text, compared with a search for every string."""

import random
import re
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.sources import read_sources
from llmcli.data.text import decoding
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.repetitions import COPIES, LENGTH, STRIDE, Repetitions, find_in_texts, find_repetitions
from llmcli.data.text.split import split
from tests.data.corpora import read_corpus
from tests.data.text.test_split import corpus_of, joined, letters
from tests.test_examples import EXAMPLES

PIECE = 200  # characters
Write = Callable[[int, int], str]  # (characters, seed) -> text


def english(count: int, seed: int) -> str:
    """Sentences of words that are drawn by chance, as frequent as in a language."""
    vocabulary = letters(9000, 99)
    words = [vocabulary[i : i + 2 + i % 8] for i in range(0, 9000, 3)]
    weights, generator = [1 / (i + 3) for i in range(len(words))], random.Random(seed)
    sentences = []
    while sum(map(len, sentences)) < count:
        sentence = " ".join(generator.choices(words, weights, k=generator.randint(5, 18)))
        sentences.append(f"{sentence.capitalize()}.{generator.choice([' ', ' ', ' ', chr(10)])}")
    return "".join(sentences)[:count]


def japanese(count: int, seed: int) -> str:
    characters = (
        "あいうえおかきくけこさしすせそたちつてとなにはひふへほまみむめもやゆよらりるれろわをん日本人大学年月水木金"
    )
    generator = random.Random(seed)
    return "".join(f"{''.join(generator.choices(characters, k=generator.randint(8, 25)))}。" for _ in range(count // 9))


def book(write: Write) -> dict[str, str]:
    texts = [f"Chapter {i}\n\n{write(15_000, i)}\n\n" for i in range(12)]
    return {"book.txt": "".join(texts)} | {f"chapter-{i}.txt": text for i, text in enumerate(texts)}


def tail(write: Write) -> dict[str, str]:
    """One text of which a part of the end stands in the middle, too."""
    text = write(90_000, 0)
    return {"text.txt": f"{text}{write(2000, 1)}{text[40_000:46_000]}{write(2000, 2)}"}


def known_pieces(training: Corpus, held_out: Corpus) -> tuple[int, int]:
    """Return (pieces of PIECE characters of the held-out text that stand in the training text, all pieces)."""
    trained = "\0".join(joined(training))
    pieces = [text[i : i + PIECE] for text in joined(held_out) for i in range(0, len(text) - PIECE + 1, PIECE)]
    return sum(piece in trained for piece in pieces), len(pieces)


@pytest.mark.slow
def test_no_piece_of_the_held_out_text_is_trained_on() -> None:
    """A book beside its chapters, and a text that ends with its middle."""
    for case in (book, tail):
        for write in [english, japanese]:
            divided = split(corpus_of(case(write)), 0.1)
            known, pieces = known_pieces(divided.training, divided.held_out)
            assert known > 0.2 * pieces, (write, case)  # as the cut left it
            found = find_repetitions(divided.training, divided.held_out)
            assert known_pieces(found.training, divided.held_out)[0] == 0 and found.known_share == 0, write
            assert 0 < found.left_out == divided.training.text_bytes - found.training.text_bytes, write
            assert found.left_out < 1.3 * divided.held_out.text_bytes, write


def test_hardly_any_of_an_edited_copy_is_trained_on() -> None:
    """Another edition, with one word in twenty replaced, and a scan, with one letter in a hundred."""
    text, generator = english(12_000, 0), random.Random(0)
    wrong_words = re.sub(r"\w+", lambda word: "other" if generator.random() < 0.05 else word[0], text)
    wrong_letters = re.sub(r"\w", lambda letter: "x" if generator.random() < 0.01 else letter[0], text)
    for copy in [wrong_words, wrong_letters]:
        found = search(f"{english(30_000, 1)}{copy}{english(30_000, 2)}", text)
        trained = "\0".join(joined(found.training))
        strings = [copy[i : i + 30] for i in range(0, len(copy) - 30, 30)]
        assert sum(string in trained for string in strings) < 0.2 * len(strings)
        assert found.left_out < 1.2 * len(copy)


def search(training: str, held_out: str, **options: bool) -> Repetitions:
    corpus = corpus_of({"a.txt": training, "b.txt": held_out})
    return find_repetitions(Corpus(corpus.contents[:1]), Corpus(corpus.contents[1:]), **options)


@settings(max_examples=60, deadline=None)
@given(
    passages=st.lists(
        st.tuples(st.integers(0, 800), st.integers(LENGTH - 20, 2 * LENGTH), st.integers(1100, 1700)),
        min_size=1, max_size=4,
    ),
    block=st.sampled_from([LENGTH // 3, 1000, 1 << 20]),
    seed=st.integers(0, 1000),
)  # fmt: skip
@pytest.mark.slow
def test_all_long_passages_are_left_out_and_no_short_ones(
    passages: list[tuple[int, int, int]], block: int, seed: int
) -> None:
    """Passages of the held-out text among other letters, of which nothing repeats by chance."""
    held_out = letters(1500, seed)
    training, kept = letters(400, seed + 10_000), 0
    for number, (start, size, others) in enumerate(passages):
        passage = f"0{held_out[start : start + size]}1"  # the characters beside it are no letters
        training += passage + letters(others, seed + 20_000 + number)
        kept += others + (size if size < LENGTH else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK_BYTES", block)
        found = search(training, held_out)
    texts = joined(found.training)
    assert all(text in training for text in texts) and sum(map(len, texts)) == len(training) - found.left_out
    longest = LENGTH + STRIDE - 1
    known = {held_out[i : i + longest] for i in range(len(held_out) - longest + 1)}
    assert not any(text[i : i + longest] in known for text in texts for i in range(len(text) - longest + 1))
    assert kept + 400 <= sum(map(len, texts))
    assert training.startswith(texts[0]) and texts[0].startswith(training[:400])


FORMS = {
    "white space": lambda text: text.replace(" ", "\n  "),
    "no-break and ideographic spaces": lambda text: text.replace(" ", "\u00a0").replace(".", ".\u3000"),
    "hyphenation": lambda text: re.sub("([a-z]{3})([a-z]{3})", "\\1-\n\\2", text),
    "soft hyphens": lambda text: re.sub("([a-z]{3})([a-z]{3})", "\\1\u00ad\\2", text),
    "other punctuation": lambda text: text.replace(".", " \u2014 \u201c*\u2026\u201d"),
    "capitals": str.upper,
    "accents": lambda text: text.translate(ACCENTED),
    "accents as characters of their own": lambda text: unicodedata.normalize("NFD", text.translate(ACCENTED)),
    "full-width letters": lambda text: text.translate(FULL_WIDTH),
    "Greek": lambda text: text.translate(GREEK),
    "Greek capitals": lambda text: text.translate(GREEK).upper(),
}  # fmt: skip
ACCENTED = str.maketrans("aeiou", "àéîõü")
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
GREEK = str.maketrans(string.ascii_lowercase[:24], "αβγδεζηθικλμνξοπρςτυφχψω")


def test_case_accents_spaces_and_punctuation_do_not_matter() -> None:
    """The passage is cut out exactly: the positions are those of the text as it is written."""
    for form in FORMS:
        text, others = english(3000, 0), letters(5000, 1)
        held_out = text.translate(GREEK) if "Greek" in form else text
        found = search(f"{others}{FORMS[form](text)}{others[::-1]}", held_out)
        first, last = joined(found.training)
        assert others in first and others[::-1] in last and len(first + last) < 10_000 + 4 * STRIDE, form
        assert found.known_share == 0, form


def test_text_in_another_normal_form_is_found() -> None:
    for letters_of in ["각급한글문장들", "がぎぐけこパビ"]:
        text = "".join(random.Random(0).choices(letters_of, k=3000))
        for form in ("NFC", "NFD", "NFKC"):
            found = search(unicodedata.normalize(form, text) + letters(60_000, 1), unicodedata.normalize("NFD", text))
            assert found.known_share == 0 and len("".join(joined(found.training))) < 60_000 + 4 * STRIDE, letters_of


def test_what_stands_in_many_places_is_no_copy() -> None:
    """A license in each of many files is how such files begin; a text that repeats itself is all trained on."""
    notice = english(600, 0)
    training = "".join(f"{notice}\n{letters(900, i)}\n" for i in range(COPIES + 1))
    found = search(training, f"{notice}\n{letters(2000, 50)}")
    assert found.left_out == 0 and 0.1 < found.known_share < 0.3
    assert search(english(700, 0) * 30, english(700, 0) * 3).known_share == 1
    copied = search(f"{training}{letters(900, 50)}", f"{notice}\n{letters(2000, 50)}")
    assert copied.left_out > 800 and 0.1 < copied.known_share < 0.3  # the other letters are a copy


def test_with_a_validation_file_all_is_trained_on() -> None:
    text = english(3000, 0)
    for found in (
        search(english(9000, 1) + text, text, keeps_training=True),
        search(text + english(2000, 1), text),  # most of the training text is never left out
    ):
        assert found.left_out == 0 and found.known_share == 1
    assert search(english(9000, 1) + text, text).known_share == 0
    assert find_repetitions(Corpus(()), Corpus(())) == Repetitions(Corpus(()), 0, 0)


def test_texts_with_hardly_any_characters() -> None:
    for data in ["", " " * 3000, "a", "a" * LENGTH, "ab " * 2000, "。" * 1000, "\U0001f600" * 500]:
        found = search(f"{data}x", f"{data}y")
        assert found.left_out == 0 and 0 <= found.known_share <= 1, data


def test_the_examples_are_all_trained_on() -> None:
    """Their sentences repeat, but no passage does."""
    for file in sorted(EXAMPLES.glob("*.txt")):
        corpus = read_sources([str(file)]).text
        divided = split(corpus, 0.1)
        found = find_repetitions(divided.training, divided.held_out)
        assert found.training == divided.training and found.known_share == 0, file


def test_texts_with_held_out_passages_are_left_out(tmp_path: Path) -> None:
    pieces = [letters(1000, seed) for seed in range(4)]
    (tmp_path / "a.txt").write_text("\n".join(pieces))
    held_out = read_corpus([str(tmp_path / "a.txt")])
    others = [letters(4000, 9), "short", pieces[0][:110], ""]
    quoted = f"They say: {pieces[2].upper()}!"
    assert find_in_texts(held_out, []) == find_in_texts(held_out, others) == (set(), 0)
    assert find_in_texts(held_out, [*others, quoted]) == ({4}, 0)
    assert find_in_texts(held_out, [*others, quoted], keeps_training=True) == (set(), pytest.approx(0.25, abs=0.04))
    most, share = find_in_texts(held_out, [*pieces, "short"])  # more than half of the texts
    assert most == set() and share > 0.85
    licenses = [pieces[1] + letters(300, 10 + i) for i in range(COPIES + 1)]
    assert find_in_texts(held_out, [quoted, *licenses]) == ({0}, pytest.approx(0.25, abs=0.04))
