"""Links and anchors of the READMEs, docs/ and examples/ lead somewhere, and the menu of the site lists every page.

Needs no generator and no network. .ci/run builds the site too (`zensical build --strict`).
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "examples/*.md") for path in ROOT.glob(pattern))
REPOSITORY = re.compile(r"https://github\.com/llmcli/llmcli/(?:blob|tree)/main/")  # a file of ours on the web
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s+(\S+)", re.M)


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.M))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site's generator make them.

    >>> sorted(anchors(ROOT / "docs" / "index.md"))
    ['llmcli']
    """
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M)
    slugs: list[str] = []
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))
        slugs.append(slug if slug not in slugs else f"{slug}-{slugs.count(slug)}")
    return {*slugs, *re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)}


def links(page: Path) -> list[str]:
    """Where a page leads: to its own anchors, to files of this repository."""
    found = [next(filter(None, groups)) for groups in LINK.findall(prose(page))]
    return [link for link in found if REPOSITORY.match(link) or not re.match(r"[a-z]+:", link)]


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for link in links(page):
            path, _, anchor = link.partition("#")
            here = ROOT / REPOSITORY.sub("", path) if REPOSITORY.match(path) else page.parent / path
            target = here if path else page
            assert target.exists(), f"{link}: there is no {target}"
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{link}: {target.name} has {sorted(anchors(target))}"


def test_a_page_of_the_site_links_only_to_pages_of_the_site() -> None:
    """A relative link out of docs/ works on GitHub alone."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for link in links(page):
            if not REPOSITORY.match(link) and (path := link.partition("#")[0]):
                assert (page.parent / path).resolve().parent == ROOT / "docs", (
                    f"{link}: give https://github.com/... instead"
                )


def test_the_menu_names_every_page() -> None:
    menu = (ROOT / "zensical.toml").read_text("utf-8").split("\nnav = [")[1].split("\n]")[0]
    named = re.findall(r'"([\w.-]+\.md)"', menu)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert sorted(named) == sorted(pages)
