"""Text from documents: the character error rate of each format against the known source, and the speed.

    python -m tests.benchmarks.document_text [--only NAME] [--keep DIRECTORY] [--speed]

Each document is made from the same source, in English or in Japanese, by another program: LuaLaTeX, LibreOffice,
Chromium, cairo and pandoc, as far as they are installed (fonts: Noto CJK). The error rate is the edit distance between
the extracted text and the source, divided by the length of the source: of the characters alone, and with spaces and
line ends. "--keep" writes each document with its source and its text beside it, to be read. "--speed" measures on one
core, on longer versions of the same documents.
"""

import argparse
import html
import importlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmcli.data.documents.extracted import ExtractionError, Skipped

FONT = "/usr/share/fonts/opentype/noto/NotoSerifCJK-Regular.ttc"
SECONDS = 3.0  # for a measurement of speed


@dataclass(frozen=True)
class Source:
    """A text with a heading, paragraphs, a list and a table."""

    language: str
    title: str
    header: str  # of the pages
    paragraphs: tuple[str, ...]
    items: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, language: str, text: str) -> "Source":
        """The blocks of a text, separated by blank lines: title, header, items, rows of the table, paragraphs."""
        title, header, items, rows, *paragraphs = (block.split("\n") for block in text.strip().split("\n\n"))
        joined = (("" if language == "ja" else " ").join(lines) for lines in paragraphs)
        table = tuple(tuple(cell.strip() for cell in row.split("|")) for row in rows)
        return cls(language, title[0], header[0], tuple(joined), tuple(items), table)

    @property
    def text(self) -> str:
        items = [f"• {item}" for item in self.items]
        return "\n".join([self.title, *self.paragraphs, *items, *("\t".join(row) for row in self.rows)])

    def times(self, number: int) -> "Source":
        """With the paragraphs in another order each time, so that pages do not begin or end alike."""
        count = len(self.paragraphs)
        orders = (self.paragraphs[n % count :] + self.paragraphs[: n % count] for n in range(number))
        return replace(self, paragraphs=tuple(one for order in orders for one in order))


SOURCES = {
    "en": Source.of("en", """
The lighthouse at the end of the road

Notes from the coast

Bring a warm coat
Tell somebody where you are going
Close both gates behind you

Year | Event | Cost
1874 | Lens installed | 2,400
1931 | Electricity | 810
1985 | Automation | 95,000

The road to the lighthouse is longer than it looks. It leaves the village behind the church, crosses two fields
that belong to nobody in particular, and climbs slowly along the cliffs until the sea appears on both sides.
Visitors who come in summer usually turn around at the second gate, because the wind is strong even on quiet days.

In 1874 the keeper was a man called Thomas Wren, who wrote down everything: the weather, the ships, the birds
that flew into the lamp at night, and the price of oil. His notebooks fill eleven shelves. Historians have used
them to reconstruct the climate of the coast, and (more surprisingly) the eating habits of an extraordinarily
isolated family.

The lamp itself is a first-order Fresnel lens, two and a half metres high. It was manufactured in Paris,
transported by ship, and carried up the hill by forty men over three days. “Nobody dropped anything,” Wren noted,
“which is more than can be said of the dinner.” Electricity arrived in 1931, automation in 1985; the last keeper
left his slippers.

What remains is a building that does one thing well. Every ten seconds it says the same sentence to anybody who
can see it, and it has never been misunderstood. Engineers who design communication protocols sometimes make the
journey to look at it, and generally return home thoughtful, slightly sunburnt and in need of a simplification.
"""),
    "ja": Source.of("ja", """
道の果ての灯台

海岸からの覚え書き

暖かい上着を持っていくこと
行き先をだれかに伝えること
門は二つとも閉めること

年 | 出来事 | 費用
1874 | レンズの設置 | 2,400
1931 | 電化 | 810
1985 | 自動化 | 95,000

灯台へ続く道は、見た目よりもずっと長い。教会の裏から村を出て、だれのものでもない畑を二つ横切り、
崖に沿ってゆっくりと登っていくと、やがて両側に海が見えてくる。夏に訪れる人たちは、
たいてい二つ目の門のところで引き返す。穏やかな日でも風が強いからである。

1874年の灯台守はトマス・レンという男で、あらゆることを書き留めた。天気、船、夜の灯りに飛び込んでくる鳥、
そして油の値段まで。彼のノートは棚十一段を埋めている。歴史家はそれを使って海岸の気候を復元し、
（さらに意外なことに）孤立した一家の食生活まで明らかにした。

灯器そのものは高さ2.5メートルの一等フレネルレンズである。パリで製造され、船で運ばれ、
四十人の男たちが三日がかりで丘の上まで担ぎ上げた。「だれも何も落とさなかった」とレンは記している。
「夕食についてはそうは言えないが。」電気は1931年に、自動化は1985年にやって来た。

残っているのは、一つのことをきちんとこなす建物である。十秒ごとに、見ることのできるすべての人に同じ文を語りかけ、
一度も誤解されたことがない。通信プロトコルを設計する技術者がときどきこれを見にやって来て、
たいていは考え込みながら帰っていく。
"""),
}  # fmt: skip


def page(source: Source, style: str = "", ruby: bool = False) -> str:
    """The source as HTML."""
    paragraphs = "".join(f"<p>{html.escape(text)}</p>\n" for text in source.paragraphs)
    if ruby:
        for base, reading in (("灯台", "とうだい"), ("崖", "がけ"), ("棚", "たな")):
            paragraphs = paragraphs.replace(base, f"<ruby>{base}<rt>{reading}</rt></ruby>")
    items = "".join(f"<li>{item}</li>" for item in source.items)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in source.rows)
    return (
        f'<!doctype html><html lang="{source.language}"><head><meta charset="utf-8"><title>{source.title}</title>'
        f"<style>body {{ font-family: 'Noto Serif CJK JP', serif; }} td {{ padding-right: 4em }} {style}</style></head>"
        f"<body><h1>{source.title}</h1>\n{paragraphs}<ul>{items}</ul>\n<table>{rows}</table></body></html>"
    )


def chromium(source: Source, path: Path, style: str = "", *, ruby: bool = False, header: bool = False) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_content(page(source, style, ruby))
        margin = {"top": "2cm", "bottom": "2cm", "left": "2cm", "right": "2cm"}
        span = f'<span style="font-size: 9px; width: 100%; text-align: center">{source.header}'
        extra = {
            "display_header_footer": True, "header_template": f"{span}</span>",
            "footer_template": f'{span} <span class="pageNumber"></span></span>',
        }  # fmt: skip
        tab.pdf(path=str(path), format="A5", margin=margin, **(extra if header else {}))
        browser.close()


def pandoc(source: Source, path: Path) -> None:
    command = ["pandoc", "-f", "html", "-o", str(path), "--metadata", f"lang={source.language}"]
    subprocess.run(
        command, input=re.sub("<title>.*?</title>", "", page(source)), text=True, check=True, capture_output=True
    )


def office(source: Source, path: Path, style: str = "", via: str = "odt") -> None:
    """By LibreOffice: from HTML to `via`, and from that to the form of `path`."""
    with tempfile.TemporaryDirectory() as directory:
        start = Path(directory) / "document.html"
        start.write_text(page(source, style), "utf-8")
        steps = ["odt"] if path.suffix == ".odt" else [via, path.suffix[1:]]
        for number, form in enumerate(steps):
            import_filter = ["--infilter=HTML (StarWriter)"] if not number else []
            soffice(directory, [*import_filter, "--convert-to", form, "--outdir", directory, str(start)])
            start = start.with_suffix(f".{form}")
        shutil.copy(start, path)


def soffice(profile: str, arguments: list[str]) -> None:
    command = ["soffice", f"-env:UserInstallation=file://{profile}/profile", "--headless", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=240)


def office_of_pandoc(source: Source, path: Path) -> None:
    """A PDF that LibreOffice makes of a DOCX that pandoc makes."""
    with tempfile.TemporaryDirectory() as directory:
        start = Path(directory) / "document.docx"
        pandoc(source, start)
        soffice(directory, ["--convert-to", "pdf", "--outdir", directory, str(start)])
        shutil.copy(start.with_suffix(".pdf"), path)


def slides(source: Source, path: Path) -> None:
    """A slide for each paragraph, as pandoc makes them."""
    text = "\n\n".join(f"## {source.title}\n\n{paragraph}" for paragraph in source.paragraphs)
    command = ["pandoc", "-f", "markdown", "-t", "pptx", "-o", str(path)]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


def latex(source: Source, path: Path, *, columns: bool = False, map_characters: bool = True) -> None:
    """With page headers, page numbers and divided words."""

    def text(content: str) -> str:
        for character in "&%$#_{}":
            content = content.replace(character, f"\\{character}")
        break_here = "\\hskip 0pt plus .08em\\relax " if source.language == "ja" else ""
        pieces = []
        for index, character in enumerate(content):
            following = content[index + 1 : index + 2]
            breakable = ord(character) > 0x2E7F and following and ord(following) > 0x2E7F
            pieces.append(character + (break_here if breakable and following not in "、。）」・ー" else ""))
        return "".join(pieces)

    font = (
        rf'\font\main="[{FONT}]:mode=node;script=latn;index=0" at 10pt'
        if source.language == "ja"
        else r"\let\main\relax"
    )
    items = "".join(rf"\item[\textbullet] {text(item)}" for item in source.items)
    rows = r"\\".join("&".join(map(text, row)) for row in source.rows)
    body = "\n\n".join(map(text, source.paragraphs))
    unmapped = "" if map_characters else r"\pdfvariable objcompresslevel=0 "
    document = rf"""\documentclass[a5paper,10pt{",twocolumn" if columns else ""}]{{article}}{unmapped}
\usepackage{{fancyhdr}}\pagestyle{{fancy}}\fancyhf{{}}
\fancyhead[L]{{\main {text(source.header)}}}\fancyfoot[C]{{\thepage}}
{font}\begin{{document}}\main {{\large\main {text(source.title)}\par}}\bigskip

{body}

\begin{{itemize}}{items}\end{{itemize}}

\noindent\begin{{tabular}}{{lll}}{rows}\end{{tabular}}
\end{{document}}"""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "document.tex").write_text(document, "utf-8")
        command = ["lualatex", "-interaction=nonstopmode", "document.tex"]
        subprocess.run(command, cwd=directory, check=False, capture_output=True, timeout=240)
        data = (Path(directory) / "document.pdf").read_bytes()
    if not map_characters:
        data = data.replace(b"/ToUnicode", b"/NoUnicode")
    path.write_bytes(data)


_CAIRO = """
import cairo, sys, json
surface = cairo.PDFSurface(sys.argv[1], 420, 595)
context = cairo.Context(surface)
context.select_font_face("Noto Serif CJK JP")
context.set_font_size(10)
lines = []
for paragraph in json.loads(sys.stdin.read()):
    line, pieces = "", paragraph.split(" ") if " " in paragraph else list(paragraph)
    for piece in pieces:
        longer = line + (" " if line and " " in paragraph else "") + piece
        if context.text_extents(longer).x_advance > 340:
            lines.append(line)
            longer = piece
        line = longer
    lines += [line, ""]
for number, line in enumerate(lines):
    if number and number % 30 == 0:
        context.show_page()
    context.move_to(40, 60 + 16 * (number % 30))
    context.show_text(line)
surface.finish()
"""


def cairo(source: Source, path: Path) -> None:
    """Lines that are drawn one by one, with python3-cairo of the system."""
    paragraphs = json.dumps([source.title, *source.paragraphs])
    subprocess.run(["/usr/bin/python3", "-c", _CAIRO, str(path)], input=paragraphs, text=True, check=True)


@dataclass(frozen=True)
class Document:
    """A document that is made of a source, and the text that it shows."""

    make: Callable[[Source, Path], None]
    suffix: str
    expected: Callable[[Source], str] = lambda source: source.text
    languages: tuple[str, ...] = ("en", "ja")
    times: int = 3  # that the paragraphs are repeated, for several pages

    @property
    def module(self) -> str:
        return {"pdf": "pdf", "epub": "epub", "html": "html"}.get(self.suffix, "office")


def _prose(source: Source) -> str:
    return "\n".join([source.title, *source.paragraphs])


def _slides(source: Source) -> str:
    return "\n".join(f"{source.title}\n{paragraph}" for paragraph in source.paragraphs)


DOCUMENTS = {
    "PDF, Chromium": Document(lambda s, p: chromium(s, p), "pdf"),
    "PDF, Chromium, two columns": Document(lambda s, p: chromium(s, p, "body { columns: 2 }"), "pdf"),
    "PDF, Chromium, vertical": Document(
        lambda s, p: chromium(s, p, "body { writing-mode: vertical-rl }"), "pdf", languages=("ja",)
    ),
    "PDF, Chromium, pronunciation above": Document(lambda s, p: chromium(s, p, ruby=True), "pdf", languages=("ja",)),
    "PDF, Chromium, headers": Document(lambda s, p: chromium(s, p, header=True), "pdf"),
    "PDF, LibreOffice from HTML": Document(lambda s, p: office(s, p), "pdf"),
    "PDF, LibreOffice from DOCX": Document(office_of_pandoc, "pdf"),
    "PDF, LuaLaTeX, headers": Document(lambda s, p: latex(s, p), "pdf"),
    "PDF, LuaLaTeX, two columns": Document(lambda s, p: latex(s, p, columns=True), "pdf"),
    "PDF, LuaLaTeX, fonts without maps": Document(lambda s, p: latex(s, p, map_characters=False), "pdf"),
    "PDF, cairo": Document(cairo, "pdf", _prose),
    "EPUB, pandoc": Document(pandoc, "epub"),
    "DOCX, pandoc": Document(pandoc, "docx"),
    "DOCX, LibreOffice": Document(lambda s, p: office(s, p), "docx"),
    "ODT, pandoc": Document(pandoc, "odt"),
    "ODT, LibreOffice": Document(lambda s, p: office(s, p), "odt"),
    "PPTX, pandoc": Document(slides, "pptx", _slides),
    "HTML": Document(lambda s, p: p.write_text(page(s), "utf-8") and None, "html"),
}


def extract(path: Path, module: str) -> tuple[str, list[Skipped]]:
    skipped, blocks = [], []
    with path.open("rb") as file:
        for block in importlib.import_module(f"llmcli.data.documents.{module}").extract(file, path.name):
            (skipped if isinstance(block, Skipped) else blocks).append(block)  # type: ignore[attr-defined]
    return "".join(blocks), skipped


def distance(first: str, second: str) -> int:
    """The edit distance, a row of the table at a time."""
    a, b = np.frombuffer(first.encode("utf-32-le"), np.uint32), np.frombuffer(second.encode("utf-32-le"), np.uint32)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for index, character in enumerate(a):
        candidates = np.minimum(row[1:] + 1, row[:-1] + (b != character))
        row = np.minimum.accumulate(np.concatenate([[index + 1], candidates]) - steps) + steps
    return int(row[-1])


def error_rates(text: str, expected: str) -> Iterator[float]:
    """Without spaces and line ends, and with them (any number of them counts as one)."""
    for normalized in (
        lambda s: "".join(s.split()),
        lambda s: "\n".join(" ".join(one.split()) for one in s.split("\n") if one.strip()),
    ):
        yield distance(normalized(text), normalized(expected)) / len(normalized(expected))


def megabytes_per_second(path: Path, document: Document) -> tuple[float, float]:
    """(megabytes of the file per second, PDF pages per second, or 0)"""
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        extract(path, document.module)
        rounds += 1
    seconds = (time.perf_counter() - started) / rounds
    pages = 0
    if document.suffix == "pdf":
        import pypdfium2

        with pypdfium2.PdfDocument(path) as opened:
            pages = len(opened)
    return path.stat().st_size / 1e6 / seconds, pages / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names")
    parser.add_argument("--keep", type=Path, help="directory for the documents and their texts")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    directory = arguments.keep or Path(tempfile.mkdtemp())
    directory.mkdir(parents=True, exist_ok=True)
    print(
        "| document | language | characters | with spaces and lines | left out |"
        + " MB/s | pages/s |" * arguments.speed
    )
    print("|---|---|---|---|---|" + "---|---|" * arguments.speed)
    for name, document in DOCUMENTS.items():
        if arguments.only not in name:
            continue
        for language in document.languages:
            print(measured(name, document, SOURCES[language], directory, arguments.speed), flush=True)
    if not arguments.keep:
        shutil.rmtree(directory)


def measured(name: str, document: Document, source: Source, directory: Path, with_speed: bool) -> str:
    """A row of the table."""
    source = source.times(document.times * (20 if with_speed else 1))
    path = directory / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{source.language}.{document.suffix}"
    if not path.exists():
        try:
            document.make(source, path)
        except (OSError, ImportError, subprocess.SubprocessError) as error:
            return f"| {name} | {source.language} | not made: {error} |"
    try:
        text, skipped = extract(path, document.module)
    except ExtractionError as error:
        return f"| {name} | {source.language} | {error} |"
    path.with_suffix(f".{document.suffix}.txt").write_text(text, "utf-8")
    path.with_suffix(f".{document.suffix}.source").write_text(document.expected(source), "utf-8")
    left_out = ", ".join(f"{one.count} x {one.reason}" for one in skipped)
    rates = ("", "") if with_speed else tuple(f"{rate:.2%}" for rate in error_rates(text, document.expected(source)))
    row = f"| {name} | {source.language} | {rates[0]} | {rates[1]} | {left_out} |"
    if with_speed:
        row += "".join(f" {value:.1f} |" for value in megabytes_per_second(path, document))
    return row


if __name__ == "__main__":
    main()
