"""Text that is not UTF-8: which encodings are recognized, and what is refused rather than guessed."""

import codecs
import contextlib
import gzip
import io
import random
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.sources import read_sources
from llmcli.data.text import encodings, file_types
from llmcli.errors import LLMError
from tests.data.corpora import error_of, joined, put, read_corpus

JAPANESE = (Path(__file__).parents[3] / "examples" / "asagohan.txt").read_text("utf-8")[:4000]
RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
    "Все смешалось в доме Облонских. Жена узнала, что муж был в связи с бывшею в их доме француженкою-гувернанткой, "
    "и объявила мужу, что не может жить с ним в одном доме.\n"
)
CHINESE = (
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。\n今天天气很好，我们一起去公园散步吧。他说他不知道这件事情，"
    "可是大家都已经听说了。学习语言需要很多时间，也需要每天练习。这本书里有许多有意思的故事，孩子们都很喜欢读。\n"
) * 3
FRENCH = (
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si vite "
    "que je n’avais pas le temps de me dire : « Je m’endors. » Et, une demi-heure après, la pensée qu’il était temps "
    "de chercher le sommeil m’éveillait.\n"
)
TEXTS = {
    "Shift_JIS": JAPANESE, "EUC-JP": JAPANESE, "ISO-2022-JP": JAPANESE, "GBK": CHINESE, "Windows-1252": FRENCH,
    "KOI8-R": RUSSIAN, "Windows-1251": RUSSIAN, "UTF-16LE": RUSSIAN, "UTF-16BE": JAPANESE,
}  # fmt: skip


def encoded(name: str) -> bytes:
    return TEXTS[name].encode(encodings.codec_of(name))


def test_common_encodings_are_recognized_and_named() -> None:
    for packed in [False, True]:
        for name in TEXTS:
            data = encoded(name)
            sources = read_sources([put("old.txt", gzip.compress(data) if packed else data)])
            assert sources.text.utf8().decode() == TEXTS[name], name
            assert sources.describe() == f"data: plain text in old.txt (decoded from {name})", name
            [record] = sources.records()
            assert (record["encoding"], record["characters"]) == (name, len(TEXTS[name])), name
            assert record["bytes"] == Path("old.txt").stat().st_size, name


def test_letters_far_into_an_ascii_text_are_enough() -> None:
    text = "A long English preface.\n" * 100_000 + FRENCH
    corpus = read_corpus([put("a.txt", text.encode("cp1252"))])
    assert joined(corpus) == text and corpus.documents[0].encoding == "Windows-1252"


REFUSED = {
    "too short": "café au lait".encode("cp1252"),
    "damaged UTF-8": JAPANESE.encode().replace(b"\x81", b"\xff", 3),
    "Shift_JIS with the end of a character missing": JAPANESE.encode("shift_jis") + b"\x81",
    "random bytes": bytes(random.Random(0).choices(range(1, 256), k=5000)),
    "random bytes and lines": bytes(random.Random(1).choices([10, *range(128, 256)], k=5000)),
    "Greek in the middle of nothing": "".join(random.Random(2).choices("αβγδεζηθ", k=2000)).encode("cp1253"),
}


def test_what_is_uncertain_is_refused() -> None:
    for kind in REFUSED:
        with pytest.raises(
            LLMError, match=r"^a\.txt is not UTF-8 text: byte .*; its encoding is uncertain; name its encoding"
        ):
            read_corpus([put("a.txt", REFUSED[kind])])


def test_a_text_that_ends_in_the_middle_of_a_character_is_named_as_such() -> None:
    for encoding, missing, left in (("utf-8", 1, "2 bytes"), ("utf-8-sig", 2, "1 byte"), ("utf-16", 1, "1 byte")):
        put("a.txt", "キツネ".encode(encoding)[:-missing])
        for options in (ReadOptions(), ReadOptions(encoding=encoding)):
            message = error_of(read_sources, ["a.txt"], options)
            assert message.startswith("a.txt ends in the middle of a UTF-"), encoding
            assert message.endswith(f"; use the complete file, or remove {left} at its end"), encoding


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=64, max_size=3000))  # eight bytes may be four characters of GBK
@example(b"<!doctype html")
@example(b"\x81\x82\x83")
@pytest.mark.slow
def test_bytes_at_random_are_never_taken_for_text(data: bytes) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    assume(b"\x1b$" not in data)  # ISO-2022-JP begins characters so, perhaps none
    put("a.bin", data)
    if file_types.recognize("a.bin", data):  # such as the four bytes PK\5\6, of a ZIP archive
        with contextlib.suppress(LLMError):
            assert joined(read_corpus(["a.bin"])) == text  # HTML is text too
    elif "\0" in text:
        with pytest.raises(LLMError):
            read_corpus(["a.bin"])
    else:
        assert joined(read_corpus(["a.bin"])) == text


# ---- --encoding


def test_the_user_decides() -> None:
    for name in ["Shift_JIS", "SJIS", "euc-jp", "iso-2022-jp", "gbk", "latin-1", "cp437", "utf-16-be"]:
        codec = encodings.codec_of(name)
        text = FRENCH.replace("’", "'") if name in ("latin-1", "cp437") else CHINESE if name == "gbk" else JAPANESE
        data = text.encode(codec)
        for corpus in (
            read_corpus([put("a.txt", data)], encoding=name),
            read_corpus(["-"], io.BytesIO(data), encoding=name),
        ):
            assert joined(corpus) == text and corpus.documents[0].encoding == encodings.name_of(codec), name
            assert corpus.documents[0].file_bytes == len(data)
        # it is not about UTF-8, which has no such text by chance, nor about a text with a byte-order mark
        for data in (text.encode(), codecs.BOM_UTF8 + text.encode(), text.encode("utf-16")):
            corpus = read_corpus([put("b.txt", data)], encoding=name)
            assert joined(corpus) == text and corpus.documents[0].encoding == "", name


def test_a_text_that_is_in_another_encoding_is_an_error_with_the_position() -> None:
    with pytest.raises(LLMError, match=r"^a\.txt is not EUC-JP text: byte 0x81 at position 2; name another encoding: "):
        read_corpus([put("a.txt", b"ab\x81\x30")], encoding="EUC-JP")
    with pytest.raises(LLMError, match=r"^a\.txt is not text: a zero byte at position 2 .*; name another encoding: "):
        read_corpus([put("a.txt", b"ab\0\xe9")], encoding="ISO-8859-1")
    for name in ("klingon", "hex", "rot13", "undefined", "a\0b"):
        message = error_of(read_corpus, ["a.txt"], None, name, exit_code=2)
        assert "is unknown; wanted a name such as Shift_JIS" in message


def test_names_lead_to_the_supersets_that_browsers_use() -> None:
    """Texts that call themselves Shift_JIS have the characters of Windows."""
    codecs_of_names = [encodings.codec_of(name) for name in ("Shift_JIS", "ISO-8859-1", "GB2312")]
    assert codecs_of_names == ["cp932", "cp1252", "gb18030"]
    for name in TEXTS:
        assert encodings.name_of(encodings.codec_of(name)) == name
