"""`llm text`: the text that training reads, exactly; and the table of files of a dry run."""

import csv
import gzip
import io
import json

from tests.conftest import Llm
from tests.data.corpora import put

TEXT = "Once upon a time…\r\n\tthere was a king.\x0c\n\nThe end"
PNG = b"\x89PNG\r\n\x1a\n\xff"
SMALL = ("--steps", 1, "--layers", 1, "--width", 16, "--context", 32, "--batch-tokens", 64, "--threads", 1)


def rows(table: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_text_of_a_file_is_printed_exactly(llm: Llm) -> None:
    for name, data in {
        "a.txt": TEXT.encode(),
        "b.txt": TEXT.encode("utf-16"),
        "c.gz": gzip.compress(TEXT.encode()),
        "d.jsonl": json.dumps({"text": TEXT}).encode(),
    }.items():
        run = llm("text", put(name, data))
        assert run.exit_code == 0 and run.stdout_bytes == TEXT.encode(), name
        assert run.stderr.startswith("data: ")
    assert llm("text", "-", stdin=TEXT).stdout_bytes == TEXT.encode()
    assert llm("text", "a.txt", "-q").stderr == ""


def test_the_options_of_training_hold(llm: Llm) -> None:
    put("a.jsonl", b"".join(json.dumps({"title": f"T{i}", "body": f"B{i}"}).encode() + b"\n" for i in range(2)))
    assert llm("text", "a.jsonl", "--template", r"{title}\n{body}").stdout == "T0\nB0\n\nT1\nB1"
    assert llm("text", "a.jsonl", "--column", "body").stdout == "B0\n\nB1"
    put("b.txt", "Äpfel".encode("cp1252"))
    refused = llm("text", "b.txt")
    assert refused.exit_code == 1 and "name its encoding: --encoding NAME" in refused.stderr
    assert llm("text", "b.txt", "--encoding", "latin-1").stdout == "Äpfel"
    assert llm("text", "b.txt", "--encoding", "klingon").exit_code == 2


def test_several_files_follow_each_other_under_their_names(llm: Llm) -> None:
    put("d/a.txt", b"One")
    put("d/b.txt", b"Two\n")
    put("d/c.csv", b"question,answer\nHi?,Ho.\n")
    put("d/d.png", PNG)
    run = llm("text", "d")
    assert run.stdout == "One\nTwo\nuser: Hi?\nassistant: Ho.\n\n"
    assert [line for line in run.stderr.splitlines() if line.startswith("---")] == [
        "--- d/a.txt", "--- d/b.txt", "--- d/c.csv",
    ]  # fmt: skip
    assert "skipped: d/d.png is an image, not text" in run.stderr
    for suffix in "mnopq":
        put(f"d/1.{suffix}", b"\0")
    assert "skipped: 1 more kind of files; to list all: llm text --json" in llm("text", "d").stderr


def test_json_describes_each_document(llm: Llm) -> None:
    put("d/a.jsonl", b'{"text": "\xe3\x81\x82b"}\n{"text": ""}\n{"text": null}\n')
    put("d/b.csv", b"question,answer\nHi?,Ho.\nWhat?,\n")
    put("d/c.png", PNG)
    put("d/d.txt.gz", gzip.compress(b"0123456789", mtime=0))
    record = json.loads(llm("text", "d", "--json").stdout)
    assert [{key: value for key, value in one.items() if key != "sha256"} for one in record["documents"]] == [
        {
            "name": "d/a.jsonl", "kind": "table", "bytes": 45, "characters": 2, "columns": ["text"],
            "skipped": [{"reason": "record without text", "count": 2}],
        },
        {"name": "d/d.txt.gz", "kind": "plain text", "bytes": 30, "characters": 10},
        {
            "name": "d/b.csv", "kind": "pairs", "bytes": 31, "characters": 6,
            "columns": ["question", "answer"], "skipped": [{"reason": "conversation without an answer", "count": 1}],
        },
    ]  # fmt: skip
    assert len(record["not_read"]) == 1 and record["not_read"][0].startswith("d/c.png is an image, not text")


def test_a_dry_run_shows_what_was_taken(llm: Llm) -> None:
    for i in range(3):
        put(f"d/{i}.txt", f"{i} Once upon a time there was a king. ".encode() * 40)
    put("d/a.jsonl", b'{"text": "Some text."}\n{"text": ""}\n')
    put("d/c.png", PNG)
    put("d/e.txt", "Äpfel".encode("cp1252"))
    run = llm("train", "d", "--dry-run", *SMALL)
    assert run.exit_code == 0, run.stderr
    header, *table = rows(run.stdout)
    assert header == ["kind", "documents", "bytes", "characters", "not read"]
    assert table[:2] == [["plain text", "3", "4,440", "4,440"], ["table", "1", "36", "10", "record without text (1)"]]
    assert table[2][0] == "not read" and table[2][4].startswith("d/c.png is an image, not text")
    assert "name its encoding: --encoding NAME" in table[3][4]
    assert table[4] == ["setting", "value", "reason"]
    record = json.loads(llm("train", "d", "--dry-run", "--json", *SMALL).stdout)
    assert record["documents"] == json.loads(llm("text", "d", "--json").stdout)["documents"]
    assert [one["name"] for one in record["documents"]] == ["d/0.txt", "d/1.txt", "d/2.txt", "d/a.jsonl"]
    assert len(record["not_read"]) == 2
