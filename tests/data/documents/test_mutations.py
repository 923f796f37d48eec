"""Mutated documents of each format: the result is text, or one line."""

import random
from pathlib import Path

from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.documents.reader import DocumentReader
from tests.data.documents import samples
from tests.data.documents.test_reader import DOCUMENTS, MEMBERS, zipped
from tests.platforms import FULL

TEXT = "A page about cats. " * 20
FILES = {name: made(TEXT) for name, (made, _) in DOCUMENTS.items() if name.count(".") == 1} | {
    "a.zip": zipped(dict(MEMBERS)),
    "a.tar": samples.tarred(MEMBERS),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The data with a few bytes changed, and a part of it cut, repeated, moved or overwritten."""
    changed = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 4, 40])):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    start, end = sorted(chance.randrange(len(changed)) for _ in range(2))
    part, way = changed[start:end], chance.randrange(6)
    if way == 0:
        return bytes(changed[:end])
    if way == 1:
        del changed[start:end]
    elif way == 2:
        changed[end:end] = part * chance.choice([1, 9])
    elif way == 3:
        changed[start:end] = chance.randbytes(end - start)
    elif way == 4:
        at = chance.randrange(len(changed))
        changed[at:at] = part
    return bytes(changed)


def test_a_mutated_file_is_text_or_one_line() -> None:
    number = 300 if FULL else 60
    assert sum(count_texts(name, data, number) for name, data in FILES.items()) > number


def count_texts(name: str, data: bytes, number: int) -> int:
    chance = random.Random(number)
    texts = unreadable = 0
    with DocumentReader(ReadOptions()) as reader:
        jobs = []
        for index in range(number):
            path = Path(f"{index}{name}")
            content = mutated(data, chance)
            path.write_bytes(content)
            jobs.append((path.name, reader.submit(path.name, path, content, plain=False)))
        for file_name, job in jobs:
            contents, problems, _ = reader.wait(job, lambda name, size: None)
            unreadable += len(problems)
            texts += len(contents)
            for file, problem in problems:
                assert "\n" not in problem and len(problem) < 600 and file_name in file
    assert texts + unreadable >= number
    return texts
