"""Notes while a long text is tokenized."""

from llmcli.data.tokens.corpus_tokens import TokenizingProgress


def notes_of(total: int, cached: int, part: int, seconds: float) -> list[str]:
    """The notes of a text of which `part` bytes are tokenized every so many seconds."""
    notes: list[str] = []
    now = 0.0
    progress = TokenizingProgress(total, cached, notes.append, lambda: now)
    for start in range(0, total, part):
        now += seconds
        progress.add(min(part, total - start))
    return notes


def test_a_long_text_has_a_note_soon_and_one_for_each_tenth() -> None:
    notes = notes_of(9_000_000_000, 0, 16_000_000, 2.5)  # 6.4 MB/s: 1,407.5 s
    assert notes[0] == "tokenizing 9.00 GB of text"
    assert notes[1] == "tokenized 1 %, about 23m left"  # 8 parts, 1.4 %, after 20 s
    assert notes[2] == "tokenized 10 %, about 21m left"
    assert notes[-1] == "tokenized 90 %, about 2m left" and len(notes) == 11


def test_notes_are_seconds_apart() -> None:
    assert notes_of(9_000_000_000, 0, 16_000_000, 0.05) == [  # 28 s in all
        "tokenizing 9.00 GB of text",
        "tokenized 71 %, about 8s left",
    ]


def test_what_is_cached_is_named() -> None:
    assert notes_of(1_000_000_000, 8_000_000_000, 16_000_000, 0.05) == [
        "tokenizing 1.00 GB of text; 8.00 GB are cached"
    ]


def test_a_text_that_takes_seconds_has_no_notes() -> None:
    assert notes_of(15_000_000, 0, 1_000_000, 3.0) == []
    assert notes_of(0, 9_000_000_000, 16_000_000, 3.0) == []


def test_pieces_of_texts_count_as_bytes() -> None:
    notes: list[str] = []
    now = iter(range(0, 900, 30))
    progress = TokenizingProgress(32_000_000, 0, notes.append, lambda: next(now))
    texts = [["é" * 4_000_000] * 2, ["a" * 8_000_000] * 2]
    assert [list(text) for text in progress.counted(iter(map(iter, texts)))] == texts
    assert notes == ["tokenizing 32.00 MB of text", "tokenized 25 %, about 2m left", "tokenized 50 %, about 1m left",
                     "tokenized 75 %, about 30s left"]  # fmt: skip
