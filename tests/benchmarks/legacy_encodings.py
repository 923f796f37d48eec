"""How often the encoding of a text is recognized, is refused, or is wrong.

    python -m tests.benchmarks.legacy_encodings ja.txt:shift_jis,euc_jp fr.txt:cp1252 pl.txt:cp1250 ...

Each file is UTF-8 text of one language. SAMPLES passages of it, of 300 to 30,000 characters, are encoded and given to
`read_document`; those that the encoding cannot hold, and those in ASCII, are left out. A result is right if the text
comes back unchanged, under whatever name.
"""

import random
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from llmcli.data.text.documents import read_document
from llmcli.data.text.temporary_files import TextCopy
from llmcli.errors import LLMError

SAMPLES = 200
LENGTHS = (300, 30_000)  # characters, evenly distributed in their logarithms


def passages(text: str, encoding: str, generator: random.Random) -> list[bytes]:
    found: list[bytes] = []
    for _ in range(20 * SAMPLES):
        length = int(LENGTHS[0] * (LENGTHS[1] / LENGTHS[0]) ** generator.random())
        start = text.find("\n", generator.randrange(max(1, len(text) - length))) + 1
        try:
            data = text[start : start + length].encode(encoding)
        except UnicodeEncodeError:
            continue
        if not data.isascii() or b"\x1b" in data:
            found.append(data)
        if len(found) == SAMPLES:
            break
    return found


def measure(path: Path, encoding: str, place: Path) -> Counter[str]:
    results: Counter[str] = Counter()
    for data in passages(path.read_text("utf-8"), encoding, random.Random(0)):
        file = place / "text.txt"
        file.write_bytes(data)
        try:
            document = read_document(str(file), file, TextCopy())
        except LLMError:
            results["refused"] += 1
            continue
        is_right = "".join(document.text()) == data.decode(encoding)
        results["right" if is_right else f"wrong: {document.encoding or 'UTF-8'}"] += 1
    return results


def main(arguments: list[str]) -> None:
    print("text\tencoding\tright\trefused\twrong")
    with TemporaryDirectory() as place:
        for argument in arguments:
            name, _, encodings = argument.rpartition(":")
            for encoding in encodings.split(","):
                results = measure(Path(name), encoding, Path(place))
                wrong = {what: count for what, count in results.items() if what.startswith("wrong")}
                print(
                    f"{Path(name).name}\t{encoding}\t{results['right']}\t{results['refused']}\t{wrong or 0}", flush=True
                )


if __name__ == "__main__":
    main(sys.argv[1:])
