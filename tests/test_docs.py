"""The documentation: links lead somewhere, generated pages are as the code says, pages are short and in the site."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tiny_runs

ROOT = tiny_runs.ROOT
DOCS = ROOT / "docs"
GENERATED = {"commands.md", "settings.md", "python.md"}
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.rglob("*.md"),
    *(ROOT / "examples").glob("*.md"),
    *(ROOT / "benchmarks").glob("*.md"),
]
OF_SITE = [page for page in DOCS.rglob("*.md") if page.parent.name != "study"]


def text_of(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"`|\*|\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", head).lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.strip()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"(?<!`)\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", OF_SITE, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_has_at_most_1200_words(page: Path) -> None:
    assert page.name in GENERATED or len(page.read_text(encoding="utf-8").split()) <= 1200


def test_the_site_has_every_page_once() -> None:
    def pages(nav: Any) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [page for entry in nav for page in pages(entry.values() if isinstance(entry, dict) else entry)]

    settings = tomllib.loads((DOCS / "zensical.toml").read_text(encoding="utf-8"))
    listed = [page for page in pages(settings["project"]["nav"]) if not page.startswith("project/")]
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in OF_SITE)


def test_generated_pages_are_as_the_code_says() -> None:
    made = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    for name, text in made.items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, "run docs/generate.py"
