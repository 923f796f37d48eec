"""What each file of a command is taken for, and the line that says so."""

import gzip
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmcli.data import regular_file
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.reading_progress import reading_progress
from llmcli.data.sources import Sources, check_reading, read_sources
from llmcli.data.text import decoding
from llmcli.errors import LLMError
from llmcli.evaluation.training_text import recorded_reading
from llmcli.formats.training_record import TrainingRecord
from tests.conftest import Llm
from tests.data.corpora import SMALL, error_of, put, write_parquet

STORIES = [{"id": i, "text": f"Story {i}.\nIts end."} for i in range(3)]
JOINED = "\n\n".join(str(story["text"]) for story in STORIES)


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read(name: str, data: bytes, reading: ReadOptions = ReadOptions()) -> Sources:  # noqa: B008
    put(name, data)
    return read_sources([name], reading)


def text_of(sources: Sources) -> str:
    return sources.text.utf8().decode()


def test_records_with_text_are_plain_text_without_braces() -> None:
    for name in ["a.jsonl", "a.txt", "a.ndjson"]:
        sources = read(name, lines(*STORIES))
        assert text_of(sources) == JOINED, name
        assert sources.describe() == f"data: text in {name} (column text; otherwise: `column` NAME or `plain`)", name
        assert sources.notes == [f"{name}: read: text; not used: id"], name


def test_an_array_of_records_with_text_and_a_parquet_file_are_the_same_text() -> None:
    assert text_of(read("a.json", json.dumps(STORIES, indent=1).encode())) == JOINED
    write_parquet("a.parquet", STORIES)
    assert text_of(read_sources(["a.parquet"])) == JOINED


def test_standard_input_is_plain_text_compressed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (lines(*STORIES), gzip.compress(lines(*STORIES))):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert text_of(read_sources(["-"])).encode() == lines(*STORIES)


def test_records_without_text_are_left_out_and_counted() -> None:
    sources = read("a.jsonl", lines({"text": "One."}, {"text": None}, {"text": " "}, {"text": "Two."}, {}))
    assert text_of(sources) == "One.\n\nTwo." and sources.notes == ["a.jsonl: left out 3 records without text"]
    with pytest.raises(LLMError, match=r'^a\.jsonl line 2: "text" is 4; wanted text in quotes'):
        read("a.jsonl", lines({"text": "One."}, {"text": 4}, {"text": "One."}))


def test_another_column_is_named_by_the_user() -> None:
    data = lines(*({"title": f"T{i}", "content": f"C{i}"} for i in range(2)))
    assert error_of(read, "a.jsonl", data) == (
        "a.jsonl: unclear which columns to read: 'title', 'content'; name a column of text, or two columns of "
        "prompts and answers: `column` title,content, or read it as plain text: `plain`"
    )
    assert text_of(read("a.jsonl", data, ReadOptions(columns=("content",)))) == "C0\n\nC1"
    pairs = read("a.jsonl", data, ReadOptions(columns=("title", "content"))).conversations
    assert [[m.content for m in one.messages] for one in pairs] == [["T0", "C0"], ["T1", "C1"]]
    assert read("a.jsonl", data, ReadOptions(pairs=True)).conversations == pairs
    assert text_of(read("a.jsonl", data, ReadOptions(plain=True))) == data.decode()


# ---- columns of prose, and templates

ARTICLE = "The river rises in the hills north of the town, and flows slowly past the old mills to the sea. " * 2


def articles(**columns: object) -> bytes:
    return lines(*({"id": i, **columns, "body": f"{i}. {ARTICLE}"} for i in range(3)))


def test_the_only_column_with_prose_is_found_and_named() -> None:
    for columns in [
        {"title": "The river", "date": "2020-01-01"},
        {"year": 2020, "tags": ["a", "b"], "vector": [0.125] * 400},
        {"url": "https://example.com/rivers", "note": None},
    ]:
        sources = read("a.jsonl", articles(**columns))
        assert text_of(sources) == "\n\n".join(f"{i}. {ARTICLE}" for i in range(3)), columns
        assert sources.describe() == (
            "data: text in a.jsonl (column body, the only one with prose; otherwise: `column` NAME or `plain`)"
        ), columns
    body = "川は町の北の丘に発し、古い水車のそばをゆっくりと流れて、やがて海に注ぎます。"  # without spaces
    sources = read("a.jsonl", lines(*({"題": "川", "本文": body * (i + 1)} for i in range(3))))
    assert sources.text.documents[0].columns == ("本文",)


def test_where_several_columns_may_hold_the_text_none_is_chosen() -> None:
    for columns in [
        {"summary": ARTICLE},  # two with prose
        {"question": "Where does the river rise, and how does it flow to the sea?"},  # too long for a title
        {"speakers": [{"role_name": "a", "said": ARTICLE}]},
    ]:
        with pytest.raises(LLMError, match=r"unclear which columns to read: .* `column` "):
            read("a.jsonl", articles(**columns))
    # short texts and codes are no prose
    for value in ("x" * 500, "short text", "a b c", "https://example.com/" + "a/" * 200):
        with pytest.raises(LLMError, match=r"unclear which columns to read: .* `column` value, or"):
            read("a.jsonl", lines(*({"id": i, "value": value} for i in range(3))))
    for value in (5, True, None):
        with pytest.raises(LLMError, match="no column has text: 'text'; wanted a text, or"):
            read("a.jsonl", lines({"text": value}))


def test_prose_beside_numbers_in_a_table_is_text_and_beside_words_an_answer() -> None:
    rows = "".join(f"{i},{ARTICLE.replace(',', ';')}\n" for i in range(4))
    sources = read("a.csv", f"number,body\n{rows}".encode())
    assert sources.text.documents[0].columns == ("body",) and not sources.conversations
    words = "".join(f"word{i},{ARTICLE.replace(',', ';')}\n" for i in range(4))
    assert len(read("b.csv", f"term,definition\n{words}".encode()).conversations) == 4


def templated(template: str) -> ReadOptions:
    return ReadOptions.of_options(template=template)


def test_a_template_joins_columns() -> None:
    for kind in ["jsonl", "json", "csv", "parquet"]:
        for template, expected in [
            ("{title}: {body}", "T0: B0\n\nT1: B1"),
            (r"# {title}\n{body}\t{{{n}}}", "# T0\nB0\t{0}\n\n# T1\nB1\t{1}"),
            ("{ TITLE }{Title}", "T0T0\n\nT1T1"),
            ("{body} ({x})", "B0 (0.5)\n\nB1 (0.5)"),
        ]:
            rows = [{"title": f"T{i}", "body": f"B{i}", "n": i, "x": 0.5} for i in range(2)]
            if kind == "parquet":
                write_parquet("a.parquet", rows)
            table = "".join(",".join(map(str, row)) + "\n" for row in ([*rows[0]], *(row.values() for row in rows)))
            data = {"jsonl": lines(*rows), "json": json.dumps(rows).encode(), "csv": table.encode()}
            reading = templated(template)
            name = put(f"a.{kind}", data[kind]) if kind in data else "a.parquet"
            sources = read_sources([name], reading)
            check_reading(reading, [sources])
            assert text_of(sources) == expected, template
            assert recorded_reading([TrainingRecord.from_json({"reading": reading.as_record()})]) == reading


def test_records_without_any_of_the_columns_are_left_out() -> None:
    reading = templated("{a}-{b}")
    records = lines({"a": "A", "b": "B"}, {"a": None}, {"a": " ", "b": ""}, {"b": "B"})
    sources = read("a.jsonl", records, reading)
    assert text_of(sources) == "A-B\n\n-B" and "a.jsonl: left out 2 records without text" in sources.notes
    with pytest.raises(LLMError, match=r'^a\.jsonl line 2: "b" is .*; wanted text in quotes$'):
        read("a.jsonl", lines({"a": "A", "b": "B"}, {"a": "A", "b": {}}), reading)


def test_a_template_that_cannot_be_filled_is_an_error() -> None:
    for template, message in [
        ("{title", r"^`template`: the brace at character 1 of '{title' is unmatched; wanted columns in braces, as in "),
        ("a } b {c}", "^`template`: the brace at character 3 of "),
        ("title", r"^`template` must name columns in braces, as in '{title}\\n{body}'; found 'title'$"),
        ("{}", "^`template` must name columns in braces"),
    ]:
        assert re.search(message, error_of(templated, template, exit_code=2)), template


def test_a_template_with_an_unknown_column_is_an_error() -> None:
    reading = templated("{title} {boddy}")
    message = error_of(read, "a.jsonl", articles(title="T"), reading)
    assert message == "a.jsonl has no column 'boddy'; its columns: 'id', 'title', 'body'"
    message = error_of(check_reading, reading, [read("a.jsonl", lines(*STORIES), reading)])
    assert message.startswith("`template` '{title} {boddy}': no file has these columns; a.jsonl has id, text")
    assert "cannot be combined" in error_of(ReadOptions.of_options, column="a", template="{a}", exit_code=2)


# ---- how often a file is opened


def test_each_file_is_opened_once_whatever_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognition, decoding and the description share one open file. (A file that is not plain text is opened once
    more, in the child process that reads it.)"""
    turns = "User: Hi\nAssistant: Ho\n"
    files = {
        "plain.txt": (b"Some text.\n", "plain text in plain.txt"),
        "latin.txt": ("café déjà vu, naïve garçon\n".encode("latin-1") * 100, "plain text in latin.txt (decoded"),
        "wide.txt": ("Some text.\n".encode("utf-16"), "plain text in wide.txt"),
        "text.jsonl": (lines(*STORIES), "text in text.jsonl"),
        "pairs.json": (b'[{"prompt": "Hi", "completion": "Ho"}]', "pairs in pairs.json"),
        "pairs.csv": (b"question,answer\nHi,Ho\nWho,I\n", "pairs in pairs.csv"),
        "turns.txt": (turns.encode(), "conversations in turns.txt"),
        "packed.txt.gz": (gzip.compress(turns.encode()), "conversations in packed.txt.gz"),
        "book.rtf": (rb"{\rtf1}", ""),
    }
    opened: list[str] = []
    real = regular_file.open_regular
    monkeypatch.setattr(decoding, "open_regular", lambda path: opened.append(str(path)) or real(path))
    for name, (data, description) in files.items():
        put(name, data)
        if description:
            assert read_sources([name]).describe().startswith(f"data: {description}"), name
        else:
            assert "is an RTF document" in error_of(read_sources, [name])
        assert opened == [name]
        opened.clear()


# ---- duplicates


def test_documents_with_the_same_text_are_read_once_and_counted() -> None:
    for name, data in {"a": b"One text.", "b": b"Another.", "c": b"One text.", "d": b"", "e": b""}.items():
        put(f"d/{name}.txt", data)
    put("d/f.txt.gz", gzip.compress(b"One text.", mtime=0))
    sources = read_sources(["d"])
    assert [one.name for one in sources.text.documents] == ["d/a.txt", "d/b.txt"]
    assert sources.text.skipped == (
        "2 documents with the text of another, which is read once: d/c.txt (as d/a.txt), d/f.txt.gz (as d/a.txt)",
        "2 documents without text: d/d.txt, d/e.txt",
    )


def test_preferences_are_refused_and_the_chosen_answers_are_read() -> None:
    """Here they are lists of messages; tests/data/conversations/test_tables.py has texts."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    records = lines(*[{"prompt": "Hi", "chosen": messages, "rejected": messages[:1]}] * 2)
    assert error_of(read, "a.jsonl", records).endswith("`column` chosen")
    [one, _] = read("a.jsonl", records, ReadOptions.of_options(column="chosen")).conversations
    assert [message.content for message in one.messages] == ["Hi", "Ho"]


def test_the_line_says_what_plain_text_has_beside_words() -> None:
    for name, data, detail in [
        ("a.json", b'{"name": "x", "size": 3}', " (JSON, read with its keys and braces)"),
        ("a.xml", b'<?xml version="1.0"?><a>Text</a>', " (XML, read with its tags)"),
        ("a.txt", b"<!DOCTYPE html>\n<html><p>Hi", " (HTML, read with its tags)"),
        ("a.htm", b"\n<!-- made by x -->\n<html lang=en>", " (HTML, read with its tags)"),
        (
            "b.txt",
            b"Go.\tVe.\nHi.\tHola.\n",
            " (tabs separate columns; to read them as prompts and answers: `column` 1,2)",
        ),
        ("a.txt", b"Once upon a time <b>there</b> was\n", ""),
        ("a.txt", b"[Scene 1]\nEnter\n", ""),
    ]:
        reading = ReadOptions(plain="HTML" in detail)
        assert read(name, data, reading).describe() == f"data: plain text in {name}{detail}", name


def test_many_files_are_grouped_by_kind() -> None:
    Path("d").mkdir()
    for i in range(5):
        put(f"d/{i}.txt", b"Once upon a time %d." % i)
    put("d/faq.txt", b"Q: Hi?\nA: Ho.\n")
    put("d/x.csv", b"question,answer\nHi,Ho\n")
    put("d/numbers.csv", b"1,2\n3,4\n")
    sources = read_sources(["d"])
    assert sources.describe() == (
        "data: plain text in 5 files (d/0.txt, d/1.txt, d/2.txt, ...); conversations in d/faq.txt (Q:/A: turns; "
        "otherwise: `plain`); pairs in d/x.csv (question/answer; otherwise: `column` NAME or `plain`)"
    )
    assert sources.text.skipped[0].startswith("d/numbers.csv: unclear which columns to read")


def test_the_line_says_which_share_of_the_text_is_markup() -> None:
    put("d/a.txt", b"A text." * 20)
    put("d/b.xml", b'<?xml version="1.0"?>' + b"<x/>" * 135 + b"\n" * 19)
    put("d/c.txt", b"Q: Hi?\nA: Ho.\n")
    put("d/d.csv", b"question,answer\nHi,Ho\n")
    sources = read_sources(["d"])
    sizes = [file.text_bytes for file in (*sources.text.documents, *sources.conversation_files)]
    share = f"{580 / sum(sizes):.0%}"
    assert sources.describe(options=False).startswith(
        f"data: plain text in d/b.xml (XML, read with its tags; {share} of the text); plain text in d/a.txt; "
    )
    assert sources.describe().endswith("; and 1 more kind")


def test_skipped_files_share_a_line_only_with_the_same_reason() -> None:
    """Each of them is in `not_read`."""
    image = b"\x89PNG\r\n\x1a\n\0"
    for name, data in {
        "a.txt": b"One text.", "b.txt": b"One text.", "1.bin": b"\0\1", "2.bin": b"x\0\1", "1.png": image,
        "2.png": image, "3.png": b"\0",
    }.items():  # fmt: skip
        put(f"d/{name}", data)
    text = read_sources(["d"]).text
    starts = ["2 .bin files; the first: d/1.bin is not text", "2 .png files; the first: d/1.png is an image",
              "d/3.png is not text", "1 document with the text of another"]  # fmt: skip
    assert [line[: len(start)] for line, start in zip(text.skipped, starts, strict=True)] == starts
    assert [line.split()[0] for line in text.not_read] == [
        "d/1.bin", "d/1.png", "d/2.bin", "d/2.png", "d/3.png", "d/b.txt"
    ]  # fmt: skip


def test_options_that_no_file_fits_are_an_error() -> None:
    sources = read("a.jsonl", lines(*STORIES))
    message = error_of(check_reading, ReadOptions(columns=("boddy",)), [sources, read("b.txt", b"Once upon a time.\n")])
    assert message == "`column` boddy: no file has these columns; a.jsonl has id, text, b.txt has no columns"
    with pytest.raises(LLMError, match=r"^`pairs`: no file is a two-column table; data: "):
        check_reading(ReadOptions(pairs=True), [sources])
    check_reading(ReadOptions(columns=("TEXT",)), [sources])
    for column in ("a,b,c", "a,,b", "a,a", ""):
        with pytest.raises(LLMError, match="`column` must be one name, or two as in question,answer"):
            ReadOptions.of_options(column=column)
    message = error_of(ReadOptions.of_options, column="a", plain=True, exit_code=2)
    assert message == "`column` and `plain` cannot be combined; give one of them"


def test_a_file_that_is_removed_while_it_is_read_is_read() -> None:
    put("d/a.gz", gzip.compress(b"the first text"))
    put("d/b.txt", b"the second text")

    def remove(name: str, size: int) -> None:
        if name == "d/a.gz":
            Path(name).unlink(missing_ok=True)

    sources = read_sources(["d"], on_read=remove)
    assert ["".join(text) for text in sources.text.texts()] == ["the first text", "the second text"]


# ---- the commands


def test_train_says_it_before_the_run_and_every_command_reads_the_same(llm: Llm) -> None:
    records = [{"body": f"The cat number {i} sat on the mat.", "n": i} for i in range(100)]
    put("a.jsonl", lines(*records))
    answer = llm("train", "a.jsonl", "--column", "body", "--json", *SMALL)
    assert answer.exit_code == 0, answer.stderr
    line = "data: text in a.jsonl (column body; otherwise: --column NAME or --plain)"
    assert answer.stderr.splitlines()[0] == line
    assert json.loads(answer.stdout.splitlines()[0])["data"] == [
        {"kind": "text", "detail": "column body", "columns": ["body"], "files": 1, "names": ["a.jsonl"]}
    ]
    again = llm("train", "a.jsonl", "--column", "body", "--dry-run", *SMALL)
    assert again.stderr.splitlines()[0] == line
    # eval and --memory read the column that was trained on, without being told, and know what was held out
    scores = llm("eval", "a.jsonl", "--json")
    assert "data: text in a.jsonl (column body)\n" in scores.stderr
    assert "bytes of this text were trained on" in scores.stderr
    memory = llm("generate", "The cat number 5 sat on the mat.", "-n", 40, "--memory", "-t", 0)
    assert memory.exit_code == 0 and "occur verbatim in a.jsonl" in memory.stderr


# ---- too little, and too much


def test_too_little_to_learn_from_is_refused(llm: Llm, tiny_model: Path) -> None:
    put("a.txt", b"Once upon a time there was a king. ..\n")
    answer = llm("train", "a.txt", *SMALL)
    assert answer.exit_code == 1 and answer.stderr == (
        "error: a.txt is too short: 38 bytes of text; wanted at least 1,000, and 100,000 for a model that writes "
        "words; add more; examples: https://github.com/llmcli/llmcli/tree/main/examples\n"
    )
    put("q.csv", b"question,answer\n" + b"".join(b"%d?,%d\n" % (i, i) for i in range(4)))
    few = llm("train", "q.csv", *SMALL)
    assert few.exit_code == 1 and few.stderr.startswith("error: 4 answers to learn; wanted at least 5, and several ")
    put("q.csv", b"question,answer\n" + b"".join(b"%d?,%d\n" % (i, i) for i in range(5)))
    assert llm("train", "q.csv", *SMALL, "--dry-run").exit_code == 0
    # a model that knows a language may learn from less
    tuned = llm("train", "a.txt", "--from", tiny_model, "--steps", 1, "--dry-run")
    assert "38 bytes of text; wanted at least 100; add more" in tuned.stderr
    put("q.csv", b"question,answer\n1?,1\n")
    assert "wanted" not in llm("train", "q.csv", "--from", tiny_model, "--steps", 1, "--dry-run").stderr


def test_reading_is_noted_and_ends_after_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, notes = [0.0], list[str]()
    monkeypatch.setattr("llmcli.data.reading_progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    put("a.txt.gz", gzip.compress(b"x" * 5_000_000))

    def later(name: str, size: int) -> None:
        now[0] += 4
        progress(name, size)

    progress = reading_progress(None, notes.append)
    read_sources(["a.txt.gz"], on_read=later)
    assert any(note.startswith("reading a.txt.gz: ") for note in notes)
    put("few/b.txt", b"small")
    put("few/c.txt", b"small")
    put("few/d.txt", b"small")
    read_sources(["few"], on_read=later)  # small files count, too
    assert notes[-1].startswith("reading few/d.txt: 4 files, ")
    Path("few/d.txt").unlink()
    now[0] = 0.0
    progress = reading_progress(20, notes.append)
    with pytest.raises(LLMError) as caught:
        read_sources(["."], on_read=later)  # a directory: other errors of its files skip them
    assert str(caught.value).startswith("a.txt.gz: reading takes more than half of the time: ")
    assert str(caught.value).endswith("give a longer `seconds`, or less text")
    put("b.csv", b"text\n" + b"x\n" * 999_999)
    assert "give a longer `seconds`" in error_of(read_sources, ["b.csv"], on_read=later)
    progress = reading_progress(20, notes.append)
    later("1.txt", 10)
    later("2.txt", 10)
    message = error_of(later, "3.txt", 10)
    assert message.startswith("3.txt: reading takes more than half of the time: 3 files, 30 bytes in 12s; give a long")
    put("b.jsonl", b'{"text": "x"}\n' * 200_000)
    progress = reading_progress(36, notes.append)
    assert error_of(read_sources, ["b.jsonl"], on_read=later).startswith("b.jsonl: reading takes more than half")


def test_a_compressed_text_without_space_for_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("gz", "zst"):
        library = gzip if suffix == "gz" else pytest.importorskip("backports.zstd", exc_type=ImportError)
        name = put(f"a.txt.{suffix}", library.compress(b"x" * 5_000_000))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 4_999_999))  # type: ignore[attr-defined]
        assert error_of(read_sources, [name]).startswith(f"{name} holds 5.00 MB of text, and "), suffix
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 5_000_000))  # type: ignore[attr-defined]
        assert read_sources([name]).text.text_bytes == 5_000_000, suffix
