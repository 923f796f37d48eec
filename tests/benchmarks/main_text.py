"""The main text of web pages: resiliparse, which llmcli uses, and trafilatura against the text that each page shows.

    python -m tests.benchmarks.main_text [--keep DIRECTORY]

Ten pages: two of the Debian reference (packages debian-reference-en and -ja, whose text Debian has too), two of the
Debian handbook, and six that imitate kinds of pages, with navigation, related articles, a cookie notice, comments and a
footer around a known text. Prints precision, recall and F1 of tokens (words; characters of Chinese and Japanese), and
the seconds of both programs.
"""

import argparse
import gzip
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from llmcli.data.documents import html
from llmcli.data.documents.paragraphs import CJK
from tests.benchmarks.document_text import SOURCES, Source

DEBIAN = Path("/usr/share/doc")
_TOKEN = re.compile(f"[{CJK}]|[^\\W_]+")

_AROUND = {
    "en": (
        "Home News Sport Weather Shop Subscribe Log in", "We use cookies to improve your experience. Accept all Reject",
        "Related: Ten harbors you must see|Why gulls steal chips|The best boots for the coast|More from this author",
        "Sign up to our newsletter. Share on social media. Print this page.", "© 2026 The Coast. Privacy Imprint",
    ),
    "ja": (
        "ホーム ニュース スポーツ 天気 ショップ 購読 ログイン", "当サイトではクッキーを使用しています。同意 拒否",
        "関連記事：一度は見たい港十選|カモメはなぜポテトを盗むのか|海岸に最適な長靴|この筆者の記事一覧",
        "メールマガジンに登録する。共有する。印刷する。", "(c) 2026 海岸新聞 会社概要 お問い合わせ",
    ),
}  # fmt: skip


def around(language: str, main: str, charset: str = "utf-8") -> str:
    menu, cookies, related, share, footer = _AROUND[language]
    links = "".join(f'<li><a href="/{number}">{word}</a></li>' for number, word in enumerate(menu.split()))
    others = "".join(f'<li><a href="/x{number}">{text}</a></li>' for number, text in enumerate(related.split("|")))
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="{charset}"><title>{menu}</title>'
        f"<script>var a = '{share}';</script><style>nav {{ color: red }}</style></head><body>"
        f'<div id="cookie-banner" class="cookie-consent">{cookies}</div><header><nav><ul>{links}</ul></nav></header>'
        f'<div class="container">{main}<aside class="sidebar"><ul>{others}</ul></aside></div>'
        f'<div class="share-buttons">{share}</div><footer><p>{footer}</p></footer></body></html>'
    )


def _paragraphs(source: Source) -> str:
    return "".join(f"<p>{text}</p>" for text in source.paragraphs)


def _items(source: Source, kind: str = "ul") -> str:
    return f"<{kind}>{''.join(f'<li>{item}</li>' for item in source.items)}</{kind}>"


def _table(source: Source) -> str:
    return (
        f"<table>{''.join('<tr>' + ''.join(f'<td>{c}</td>' for c in row) + '</tr>' for row in source.rows * 6)}</table>"
    )


def _rows(source: Source) -> str:
    return "\n".join(" ".join(row) for row in source.rows * 6)


def news(source: Source) -> tuple[str, str]:
    main = f'<article class="story"><h1>{source.title}</h1><p class="lead">{source.paragraphs[0]}</p>'
    main += "".join(f"<p>{text}</p>" for text in source.paragraphs[1:]) + "</article>"
    return main, "\n".join([source.title, *source.paragraphs])


def blog(source: Source) -> tuple[str, str]:
    comments = (
        '<div id="comments" class="comments"><h3>2 replies</h3><p>Great post!</p><p>Thanks for sharing.</p></div>'
    )
    main = f'<div class="post hentry"><h2 class="entry-title">{source.title}</h2><div class="entry-content">'
    main += f"{_paragraphs(source)}{_items(source)}</div></div>{comments}"
    return main, "\n".join([source.title, *source.paragraphs, *source.items])


def forum(source: Source) -> tuple[str, str]:
    posts = "".join(
        f'<div class="post"><div class="author">user{number} <span>Posts: {number * 7}</span></div>'
        f'<div class="message">{text}</div><div class="signature">Sent from my telephone</div></div>'
        for number, text in enumerate(source.paragraphs)
    )
    return f'<div class="thread"><h1>{source.title}</h1>{posts}</div>', "\n".join([source.title, *source.paragraphs])


def table(source: Source) -> tuple[str, str]:
    main = f"<div class='content'><h1>{source.title}</h1><p>{source.paragraphs[0]}</p>{_table(source)}</div>"
    return main, f"{source.title}\n{source.paragraphs[0]}\n{_rows(source)}"


def recipe(source: Source) -> tuple[str, str]:
    main = f'<div itemscope class="recipe"><h1>{source.title}</h1><p>{source.paragraphs[0]}</p>{_items(source)}'
    main += f"<ol>{''.join(f'<li>{text}</li>' for text in source.paragraphs[1:])}</ol></div>"
    return main, "\n".join([source.title, *source.paragraphs, *source.items])


def encyclopedia(source: Source) -> tuple[str, str]:
    box = (
        '<table class="infobox">'
        + "".join(f"<tr><th>{row[0]}</th><td>{row[1]}</td></tr>" for row in source.rows)
        + "</table>"
    )
    sections = "".join(
        f'<h2><span class="mw-headline">{item}</span><span class="mw-editsection">[<a href="#">edit</a>]</span></h2>'
        f'<p>{text}<sup class="reference"><a href="#1">[1]</a></sup></p>'
        for item, text in zip(source.items, source.paragraphs[1:], strict=True)
    )
    toc = f'<div id="toc" class="toc"><h2>Contents</h2>{_items(source)}</div>'
    main = f'<div id="content" class="mw-body"><h1 id="firstHeading">{source.title}</h1><div id="bodyContent">{box}'
    main += f"<p>{source.paragraphs[0]}</p>{toc}{sections}</div></div>"
    rows = [" ".join(row[:2]) for row in source.rows]
    return main, "\n".join([source.title, *rows, *source.paragraphs, *source.items])


KINDS: dict[str, tuple[Callable[[Source], tuple[str, str]], str, str]] = {
    "news article": (news, "en", "utf-8"), "blog with comments": (blog, "en", "utf-8"), "forum": (forum, "en", "utf-8"),
    "page with a table": (table, "en", "utf-8"), "recipe": (recipe, "en", "utf-8"),
    "encyclopedia": (encyclopedia, "en", "utf-8"), "news, Shift_JIS": (news, "ja", "shift_jis"),
    "blog, Japanese": (blog, "ja", "utf-8"),
}  # fmt: skip


def pages() -> dict[str, tuple[bytes, str]]:
    """{name: (page, the text it shows)}"""
    found = {}
    for language in ("en", "ja"):
        reference = DEBIAN / "debian-reference-common/docs"
        page = (reference / f"ch08.{language}.html").read_bytes()
        text = gzip.decompress((reference / f"debian-reference.{language}.txt.gz").read_bytes()).decode("utf-8")
        starts = [match.start() for match in re.finditer(r"^(?:第(?:8|9)章|Chapter\s(?:8|9)\.)", text, re.M)]
        start, end = starts[-2:]
        found[f"Debian reference, {language}"] = page, text[start:end]
    for name, (kind, language, encoding) in KINDS.items():
        main, text = kind(SOURCES[language])
        found[name] = around(language, main, encoding.replace("_", "-")).encode(encoding), text
    return found


def by_resiliparse(page: bytes) -> str:
    return html.main_text(html.decode(page))


def by_trafilatura(page: bytes) -> str:
    import trafilatura

    return trafilatura.extract(page, include_comments=False, include_tables=True) or ""


def scores(text: str, expected: str) -> tuple[float, float, float]:
    """Precision, recall, F1 of the tokens."""
    given, wanted = Counter(_TOKEN.findall(text)), Counter(_TOKEN.findall(expected))
    common = sum((given & wanted).values())
    precision, recall = common / max(1, sum(given.values())), common / max(1, sum(wanted.values()))
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="directory for the pages and their texts")
    directory = parser.parse_args().keep
    programs = {"resiliparse": by_resiliparse, "trafilatura": by_trafilatura}
    print("| page | " + " | ".join(f"{name}: precision, recall | F1" for name in programs) + " |")
    print("|---|" + "---|---|" * len(programs))
    all_scores: dict[str, list[float]] = {name: [] for name in programs}
    seconds = dict.fromkeys(programs, 0.0)
    for name, (page, expected) in pages().items():
        row = f"| {name} |"
        for program, extract in programs.items():
            started = time.perf_counter()
            text = extract(page)
            seconds[program] += time.perf_counter() - started
            precision, recall, f1 = scores(text, expected)
            all_scores[program].append(f1)
            row += f" {precision:.3f}, {recall:.3f} | {f1:.3f} |"
            if directory:
                directory.mkdir(parents=True, exist_ok=True)
                (directory / f"{name}.{program}.txt".replace(" ", "-")).write_text(text, "utf-8")
                (directory / f"{name}.html".replace(" ", "-")).write_bytes(page)
        print(row)
    means = (f"{sum(values) / len(values):.3f}" for values in all_scores.values())
    print(
        "| mean | "
        + " | ".join(f"{seconds[program]:.2f} s | {mean}" for program, mean in zip(programs, means, strict=True))
        + " |"
    )


if __name__ == "__main__":
    main()
