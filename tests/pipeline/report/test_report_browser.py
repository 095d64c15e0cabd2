"""The report in a browser: light, dark, on a phone, on paper; nothing is fetched, nothing is wider than the screen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Finished

from kdc.pipeline.report.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> str:
    copied = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(finished.folder / "run", copied, symlinks=True)
    write_report(copied)
    return (copied / "report.html").as_uri()


def test_it_fetches_nothing_and_shows_all_figures(page: Page, address: str) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.goto(address)
    assert asked == [address]
    assert wrong == []
    boxes = [figure.bounding_box() for figure in page.locator("figure svg").all()]
    assert len(boxes) == 5
    assert all(box is not None and box["width"] > 300 and box["height"] > 100 for box in boxes)


def test_dark_is_another_page_of_the_same_figures(page: Page, address: str) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        ink = page.locator("figure svg text").first.evaluate("node => getComputedStyle(node).fill")
        colours[scheme] = (page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor"), ink)
    assert colours["light"][0] != colours["dark"][0]
    assert colours["light"][1] != colours["dark"][1]


def test_a_phone_scrolls_down_alone(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_prints(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"


def test_no_column_is_lost_on_paper(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 1032, "height": 700})  # A4 across, less its margins
    page.emulate_media(media="print")
    page.goto(address)
    widths = page.evaluate("[...document.querySelectorAll('table')].map(each => each.scrollWidth)")
    page.emulate_media(media="screen")
    assert widths
    assert max(widths) <= 1032
