"""/playground in a headless browser, on a served tiny model and, for other kinds of task, on canned answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import pytest
from bag_models import TYPED, write_artifact
from live import running

from kdc.artifact.manifest import TaskInfo

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

KEY = "a key, ключ"
INFO = {
    "model_id": "canned",
    "task": "mood",
    "kind": "classification",
    "columns": ["review"],
    "variant": "int8",
    "provider": "CPUExecutionProvider",
    "max_input_length": 64,
}
PAIRS = TaskInfo(name="pairs", kind="classification", text="first", text_pair="second", labels=("no", "yes"))
Canned = Callable[[dict[str, Any], list[dict[str, Any]]], "Page"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("pairs"), PAIRS, TYPED, outputs=2)


@pytest.fixture(scope="module")
def url(artifact: Path) -> Iterator[str]:
    with running(f"tiny={artifact}") as address:
        yield address


@pytest.fixture(scope="module")
def locked_url(artifact: Path) -> Iterator[str]:
    """The same behind an API key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAYGROUND_KEY", KEY)
        with running(f"tiny={artifact}", api_key_env="PLAYGROUND_KEY") as address:
            yield address


@pytest.fixture
def pair(page: Page, url: str) -> Page:
    """The page of the tiny pair task."""
    page.goto(f"{url}/playground")
    return page


@pytest.fixture
def canned(page: Page, url: str) -> Canned:
    """Opens the page on a service with canned replies, the first for /info and the second for /predict."""

    def opened(info: dict[str, Any], answer: list[dict[str, Any]]) -> Page:
        page.route("**/info", lambda route: route.fulfill(json=INFO | info))
        page.route("**/predict", lambda route: route.fulfill(json=answer))
        page.goto(f"{url}/playground")
        return page

    return opened


def box(page: Page, name: str) -> Locator:
    """The box of a column."""
    return page.get_by_role("textbox", name=name, exact=True)


def ask(page: Page, *texts: str) -> None:
    """Fill the boxes and press the button."""
    boxes = page.locator("textarea")
    boxes.first.wait_for()
    for each, text in zip(boxes.all(), texts, strict=True):
        each.fill(text)
    page.get_by_role("button", name=re.compile("Classify|Predict")).click()


def settled(page: Page) -> None:
    """Wait for a result."""
    page.get_by_role("heading", name="Result").wait_for()


def shown_scores(page: Page) -> dict[str, float]:
    """Label: percent, from top to bottom."""
    settled(page)
    rows = [row.inner_text().split("\n") for row in page.get_by_role("listitem").all()]
    return {label: float(percent.removesuffix("%")) for label, percent, *_ in rows}


def run_shell(command: str, **environment: str) -> Any:
    """The JSON that a shell command prints."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        check=True,
        timeout=30,
        env=os.environ | {"NO_PROXY": "*"} | environment,
    )
    return json.loads(done.stdout)


@pytest.mark.browser
def test_a_pair_task_has_two_boxes_named_by_its_columns(pair: Page) -> None:
    box(pair, "first").wait_for()
    assert [box.text_content() for box in pair.locator("label:visible").all()] == ["first", "second"]


@pytest.mark.browser
def test_the_head_says_what_is_served(pair: Page, url: str) -> None:
    box(pair, "first").wait_for()
    info = httpx2.get(f"{url}/info").json()
    assert pair.get_by_role("heading", level=1).inner_text() == "tiny"
    line = pair.locator("#about").inner_text()
    assert line.split(" · ") == [info[name] for name in ("task", "kind", "variant", "provider")]


@pytest.mark.browser
def test_the_shares_of_a_prediction_are_100_percent_together(pair: Page) -> None:
    ask(pair, "w1 w4", "w5")
    scores = shown_scores(pair)
    assert set(scores) == {"yes", "no"}
    assert sum(scores.values()) == pytest.approx(100, abs=0.11)  # each is rounded


@pytest.mark.browser
def test_bars_are_as_wide_as_their_share(pair: Page) -> None:
    ask(pair, "w1 w4", "w5")
    scores = shown_scores(pair)
    script = "bars => bars.map(bar => 100 * bar.offsetWidth / bar.parentElement.offsetWidth)"
    assert pair.locator("#scores .bar").evaluate_all(script) == pytest.approx(list(scores.values()), abs=0.5)


@pytest.mark.browser
def test_the_best_label_is_first(pair: Page) -> None:
    ask(pair, "w2 w4", "w5")
    scores = list(shown_scores(pair).values())
    assert scores == sorted(scores, reverse=True)


@pytest.mark.browser
def test_the_result_is_read_out_with_tokens_and_milliseconds(pair: Page) -> None:
    ask(pair, "w1 w4", "w5")
    settled(pair)
    spoken = pair.locator("[aria-live=polite]").text_content() or ""
    assert re.fullmatch(r"Best: (yes|no), [\d.]+%\. 6 tokens, [\d.]+ ms round trip\. ", spoken)


@pytest.mark.browser
@pytest.mark.parametrize(("words", "is_cut"), [(200, True), (2, False)])
def test_texts_that_were_cut_are_said_to_be(pair: Page, words: int, is_cut: bool) -> None:
    ask(pair, "w1 " * words, "w5")
    settled(pair)
    assert pair.get_by_text(re.compile("^Cut: ")).is_visible() is is_cut


@pytest.mark.browser
def test_a_refusal_is_told_in_the_services_words(pair: Page) -> None:
    ask(pair, "w" * 200_001, "w5")
    problem = pair.get_by_role("alert")
    problem.wait_for()
    assert problem.inner_text().startswith("A text is too long; given: 200001 characters; at most 200000.")


@pytest.mark.browser
def test_a_service_that_is_gone_is_told_in_words(pair: Page) -> None:
    pair.route("**/predict", lambda route: route.abort())
    ask(pair, "w1", "w5")
    pair.get_by_text("The service cannot be reached.").wait_for()


@pytest.mark.browser
def test_a_result_is_not_left_beside_a_problem(pair: Page) -> None:
    ask(pair, "w1", "w5")
    settled(pair)
    pair.route("**/predict", lambda route: route.abort())
    ask(pair, "w2", "w5")
    pair.get_by_role("alert").wait_for()
    assert pair.get_by_role("heading", name="Result").is_hidden()


@pytest.mark.browser
def test_a_service_that_was_not_ready_can_be_asked_again(page: Page, url: str) -> None:
    page.route("**/info", lambda route: route.abort(), times=1)
    page.goto(f"{url}/playground")
    page.get_by_role("button", name="Try again").click()
    box(page, "first").wait_for()


@pytest.mark.browser
def test_no_key_is_asked_for_where_none_is_needed(pair: Page) -> None:
    ask(pair, "w1", "w5")
    settled(pair)
    assert pair.get_by_label("API key").is_hidden()


@pytest.mark.browser
def test_the_key_is_asked_for_and_opens_the_service(page: Page, locked_url: str) -> None:
    page.goto(f"{locked_url}/playground")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    ask(page, "w1", "w5")
    assert set(shown_scores(page)) == {"yes", "no"}


@pytest.mark.browser
def test_a_wrong_key_is_told_and_can_be_replaced(page: Page, locked_url: str) -> None:
    page.goto(f"{locked_url}/playground")
    page.get_by_label("API key").fill("another")
    page.keyboard.press("Enter")
    page.get_by_text("The API key is wrong.").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    box(page, "first").wait_for()


@pytest.mark.browser
def test_a_key_that_is_needed_later_answers_the_question_that_was_asked(pair: Page) -> None:
    refusal = {"error": "the bearer token is missing or wrong", "error_type": "Unauthorized"}
    pair.route("**/predict", lambda route: route.fulfill(status=401, json=refusal), times=1)
    ask(pair, "w1", "w5")
    pair.get_by_label("API key").fill(KEY)
    pair.get_by_role("button", name="Use this key").click()
    assert set(shown_scores(pair)) == {"yes", "no"}


@pytest.mark.browser
def test_the_key_is_kept_in_memory_only(page: Page, locked_url: str) -> None:
    page.goto(f"{locked_url}/playground")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    box(page, "first").wait_for()
    assert page.context.storage_state() == {"cookies": [], "origins": []}
    page.reload()
    page.get_by_label("API key").wait_for()
    assert page.get_by_label("API key").input_value() == ""


@pytest.mark.browser
def test_no_request_leaves_the_service(page: Page, url: str) -> None:
    asked: list[str] = []
    stopped: list[str] = []  # by the Content-Security-Policy; the browser says so in its console
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: stopped.append(message.text))
    page.goto(f"{url}/playground")
    ask(page, "w1 <img src=http://192.0.2.1/x>", "w5")
    settled(page)
    assert {urlsplit(each).netloc for each in asked} == {urlsplit(url).netloc}
    assert [urlsplit(each).path for each in asked] == ["/playground", "/info", "/predict"]
    assert not stopped


@pytest.mark.browser
@pytest.mark.parametrize("keys", ["Control+Enter", "Meta+Enter"])
def test_a_shortcut_sends(pair: Page, keys: str) -> None:
    box(pair, "first").fill("w1")
    box(pair, "second").fill("w5")
    box(pair, "second").press(keys)
    settled(pair)


@pytest.mark.browser
def test_the_questions_of_an_artifact_are_shown_as_text_and_many_are_counted(canned: Canned) -> None:
    questions = [f"noul '<b>Is it {number}?</b>'" for number in range(10)]
    page = canned({"questions": questions}, [{"label": "good", "score": 0.75}])
    page.locator("textarea").first.wait_for()
    shown = page.locator("#asked").inner_text().splitlines()
    assert shown == [*questions[:8], "and 2 more questions"]


@pytest.mark.browser
def test_a_second_question_waits_for_the_first_answer(page: Page, url: str) -> None:
    held: list[Any] = []
    page.route("**/predict", lambda route: held.append(route))  # it cannot mark a built-in as its own
    page.goto(f"{url}/playground")
    ask(page, "w1", "w5")
    page.get_by_role("button", name="Working…", disabled=True).wait_for()
    box(page, "second").press("Control+Enter")
    held[0].continue_()
    settled(page)
    assert len(held) == 1


@pytest.mark.browser
def test_an_empty_box_is_not_sent(pair: Page) -> None:
    asked: list[str] = []
    pair.on("request", lambda request: asked.append(request.url))
    ask(pair, "w1", "")
    assert box(pair, "second").evaluate("box => box.matches(':invalid:focus')")
    assert not asked


@pytest.mark.browser
@pytest.mark.parametrize(
    "text",
    ["w1 it's", "'; exit 1; '", '"$HOME" `id` $(id) \\ \\n !!', "two\nlines\tand\u2028more", "naïve 文 🙂 -d @x"],
)
def test_the_curl_command_gives_the_same_answer(pair: Page, text: str) -> None:
    with pair.expect_response("**/predict") as answer:
        ask(pair, text, "w5")
    settled(pair)
    assert run_shell(pair.get_by_label("curl command").inner_text()) == answer.value.json()


@pytest.mark.browser
def test_the_curl_command_takes_the_key_from_the_environment(page: Page, locked_url: str) -> None:
    page.goto(f"{locked_url}/playground")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    with page.expect_response("**/predict") as answer:
        ask(page, "w1", "w5")
    settled(page)
    command = page.get_by_label("curl command").inner_text()
    assert KEY not in command
    assert run_shell(command, KDC_API_KEY=KEY) == answer.value.json()


@pytest.mark.browser
@pytest.mark.parametrize("has_clipboard", [True, False])
def test_the_curl_command_can_be_copied(pair: Page, has_clipboard: bool) -> None:
    pair.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if not has_clipboard:  # as on a page that came over plain HTTP from another host
        pair.evaluate("navigator.clipboard.writeText = undefined")
    ask(pair, "w1 it's", "w5")
    pair.get_by_role("button", name="Copy").click()
    pair.get_by_role("button", name="Copied").wait_for()
    copied = pair.evaluate("navigator.clipboard.readText()")
    assert copied == pair.get_by_label("curl command").inner_text()


@pytest.mark.browser
def test_a_task_of_single_texts_has_one_box_and_sends_one_text(canned: Canned) -> None:
    page = canned({}, [{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}])
    with page.expect_request("**/predict") as request:
        ask(page, "fine")
    assert request.value.post_data_json == {"inputs": "fine"}


@pytest.mark.browser
def test_a_regression_is_a_number_without_bars(canned: Canned) -> None:
    page = canned({"kind": "regression"}, [{"label": "score", "score": -3.8471923}])
    ask(page, "fine")
    settled(page)
    assert page.get_by_text("-3.8472", exact=True).is_visible()
    assert page.get_by_role("list").is_hidden()


@pytest.mark.browser
def test_every_label_of_several_has_a_share_of_its_own(canned: Canned) -> None:
    page = canned({"kind": "multilabel"}, [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.8}])
    ask(page, "fine")
    assert shown_scores(page) == {"a": 90.0, "b": 80.0}


@pytest.mark.browser
def test_a_slider_begins_at_the_threshold_and_moves_the_decision(canned: Canned) -> None:
    thresholds = {"toString": 0.85, "b": 0.3}
    answer = [{"label": "toString", "score": 0.8}, {"label": "b", "score": 0.4}, {"label": "c", "score": 0.45}]
    page = canned({"kind": "multilabel", "thresholds": thresholds}, answer)
    ask(page, "fine")
    settled(page)
    decision = page.locator("#decision")
    assert decision.text_content() == "Decision: b"
    slider = page.get_by_label("Probability from which toString is given")
    assert slider.input_value() == "0.85"
    slider.fill("0.7")
    assert decision.text_content() == "Decision: toString, b"
    assert page.locator("li.chosen .label").all_text_contents() == ["toString", "b"]
    page.get_by_label("Probability from which b is given").fill("0.9")
    slider.fill("0.9")
    assert decision.text_content() == "Decision: no label"
    assert page.get_by_role("slider").count() == 2


@pytest.mark.browser
@pytest.mark.parametrize(("threshold", "given"), [(0.95, "ham"), (0.8, "spam")])
def test_of_two_classes_a_threshold_decides_and_without_one_the_best(
    canned: Canned, threshold: float, given: str
) -> None:
    answer = [{"label": "spam", "score": 0.9}, {"label": "ham", "score": 0.1}]
    page = canned({"thresholds": {"spam": threshold}}, answer)
    ask(page, "fine")
    settled(page)
    assert page.locator("#decision").text_content() == f"Decision: {given}"
    assert page.locator("li.chosen .label").all_text_contents() == [given]
    plain = canned({"thresholds": {}}, answer)
    ask(plain, "fine")
    settled(plain)
    assert plain.locator("#decision").text_content() == ""
    assert plain.locator("li.chosen .label").all_text_contents() == ["spam"]


@pytest.mark.browser
def test_a_slider_moves_from_which_probability_on_a_text_is_answered(canned: Canned) -> None:
    page = canned({"answers_from": 0.7}, [{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}])
    ask(page, "fine")
    settled(page)
    decision, slider = page.locator("#decision"), page.get_by_label("Probability from which a text is answered")
    assert (decision.text_content(), slider.input_value()) == ("Decision: abstained", "0.7")
    assert page.locator("li.chosen").count() == 0
    slider.fill("0.6")
    assert decision.text_content() == "Decision: a"
    assert page.locator("li.chosen .label").all_text_contents() == ["a"]
    plain = canned({"answers_from": None}, [{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}])
    ask(plain, "fine")
    settled(plain)
    assert plain.get_by_role("slider").count() == 0


@pytest.mark.browser
def test_hundreds_of_long_labels_scroll_in_their_list_on_a_phone(canned: Canned) -> None:
    page = canned({"kind": "multilabel"}, [{"label": f"{n}_{'long' * 40}", "score": 1 - n / 300} for n in range(300)])
    page.set_viewport_size({"width": 320, "height": 640})
    ask(page, "fine")
    assert len(shown_scores(page)) == 300
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.get_by_role("list").evaluate("list => list.scrollHeight > list.clientHeight && list.tabIndex === 0")
    assert page.get_by_role("list").evaluate("list => list.scrollWidth <= list.clientWidth")
    assert page.get_by_role("list").evaluate("list => list.clientHeight < innerHeight")


@pytest.mark.browser
def test_names_are_shown_as_text_not_as_html(canned: Canned) -> None:
    name = "<b onclick=x>bold</b>"
    page = canned({"model_id": name, "columns": [name]}, [{"label": name, "score": 1.0}])
    ask(page, name)
    settled(page)
    assert page.get_by_text(name, exact=True).count() == 3
    assert page.locator("b").count() == 0


def test_the_page_is_open_where_the_service_has_a_key(locked_url: str) -> None:
    assert httpx2.get(f"{locked_url}/playground").status_code == 200
    assert httpx2.get(f"{locked_url}/info").status_code == 401


def test_the_browser_is_told_to_load_nothing_else(url: str) -> None:
    headers = httpx2.get(f"{url}/playground").headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"].startswith("default-src 'none';")
    for page in ("/playground", "/docs"):
        assert "frame-ancestors 'none'" in httpx2.get(url + page).headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_root_leads_to_the_page_and_still_predicts(url: str) -> None:
    home = httpx2.get(url)
    assert (home.status_code, home.headers["location"]) == (307, "playground")
    assert httpx2.post(url, json={"inputs": ["w1", "w5"]}).status_code == 200
