"""`kdc export --to web`: pinned libraries, and a page that answers as the engine does, in Node and in a browser."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bag_models import INFO, PAIR, SINGLE, TYPED, WORDS, write_artifact
from live import ROOT
from tiers import others_slow
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import kdc
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.tokenizing import as_row
from kdc.tools.export import web_page
from kdc.tools.export.export import export_artifact
from kdc.tools.export.web_page import PACKAGES, Package

if TYPE_CHECKING:
    from playwright.sync_api import Page

ASSETS = ROOT / "build" / "npm"  # `make test-browser` fetches the archives
SEVERAL = TaskInfo(name="topics", kind="multilabel", labels=("x", "y", "z"))
PRICES = TaskInfo(name="prices", kind="regression", center=1234.5, spread=98.7)
CASES = [(PAIR, "left"), (PRICES, "right"), (PAIR, "right"), (SINGLE, "right"), (SINGLE, "left"), (SEVERAL, "right")]
LONG = "w1 w2 w3 w4 w5 w6 w7 w8 w9"
needs_packages = pytest.mark.skipif(
    not all((ASSETS / package.archive).exists() for package in PACKAGES), reason="needs build/npm: make build/npm"
)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
# Answers each line of rows with scores and token ids, by the exported module itself.
SCRIPT = """
import { readFileSync } from "node:fs";
import { Classifier } from "./classifier.js";
const read = (name) => new Response(readFileSync(name));
const model = await Classifier.load(JSON.parse(readFileSync("model.json")), read);
const answers = [];
for (const row of JSON.parse(readFileSync(0))) {
  answers.push([(await model.classify(row)).scores, model.encode(row).ids]);
}
console.log(JSON.stringify(answers));
"""


def archive(**files: str) -> bytes:
    """A package as npm packs it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as packing:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            packing.addfile(entry, io.BytesIO(text.encode()))
    return written.getvalue()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Package, Path]:
    """The only package that the page needs here, and its archive."""
    content = archive(**{"package/dist/one.js": "wanted", "package/dist/two.js": "no", "../outside.js": "no"})
    hashed = base64.b64encode(hashlib.sha512(content).digest()).decode()
    made = Package("@owner/name", "1.2.3", hashed, {"dist/one.js": "library.js"})
    monkeypatch.setattr(web_page, "PACKAGES", (made,))
    file = tmp_path / "assets" / "owner-name-1.2.3.tgz"
    file.parent.mkdir()
    file.write_bytes(content)
    return made, file


def test_only_the_named_files_of_a_package_are_unpacked(package: tuple[Package, Path], tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    made = export_artifact(artifact, str(tmp_path / "page"), form="web", assets=package[1].parent)
    files = {file.relative_to(tmp_path / "page").as_posix() for file in (tmp_path / "page").rglob("*")}
    ours = {"index.html", "page.js", "classifier.js", "style.css", "model.json"}
    assert files == ours | {"library.js", "model.onnx.gzip", "tokenizer.json.gzip"}
    assert (tmp_path / "page" / "library.js").read_text() == "wanted"
    assert not (tmp_path / "outside.js").exists()
    unpacked = gzip.decompress((tmp_path / "page" / "model.onnx.gzip").read_bytes())
    assert unpacked == (artifact / "model.int8.onnx").read_bytes()
    assert made.place == str(tmp_path / "page")


def test_a_changed_package_is_refused_and_leaves_nothing(package: tuple[Package, Path], tmp_path: Path) -> None:
    changed = bytearray(package[1].read_bytes())
    changed[-1] ^= 1
    package[1].write_bytes(changed)
    with pytest.raises(KdcError, match="not the pinned one"):
        export_artifact(
            write_artifact(tmp_path / "artifact"), str(tmp_path / "page"), form="web", assets=package[1].parent
        )
    assert {file.name for file in tmp_path.iterdir()} == {"artifact", "assets"}


def test_a_package_is_fetched_from_the_registry_that_npm_uses(
    package: tuple[Package, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def opened(url: str, timeout: float) -> Any:
        asked.append(url)
        return package[1].open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://mirror.example/npm/")
    export_artifact(write_artifact(tmp_path / "artifact"), str(tmp_path / "page"), form="web")
    assert asked == ["https://mirror.example/npm/@owner/name/-/name-1.2.3.tgz"]


def test_a_missing_package_is_told_with_the_command_that_fetches_it(
    package: tuple[Package, Path], tmp_path: Path
) -> None:
    with pytest.raises(KdcError, match=r"npm pack @owner/name@1\.2\.3"):
        export_artifact(write_artifact(tmp_path / "artifact"), str(tmp_path / "page"), form="web", assets=tmp_path)


def test_other_forms_take_no_assets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only --to web"):
        export_artifact(write_artifact(tmp_path / "artifact"), str(tmp_path / "x"), form="oci", assets=tmp_path)


def exported(artifact: Path, folder: Path) -> Path:
    export_artifact(artifact, str(folder), form="web", assets=ASSETS)
    return folder


def in_node(page: Path, rows: list[list[str]], script: str = SCRIPT) -> list[Any]:
    """What the script prints: for each row its scores and token ids."""
    (page / "package.json").write_text('{"type": "module"}')
    (page / "ask.js").write_text(script)
    given = json.dumps(rows)
    done = subprocess.run(["node", "ask.js"], cwd=page, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_packages
@needs_node
@pytest.mark.parametrize("case", others_slow(CASES, fast=2), ids=lambda case: f"{case[0].name}-{case[1]}")
def test_the_module_answers_as_the_engine(case: tuple[TaskInfo, str], tmp_path: Path) -> None:
    """Would catch an activation of another kind, token types that are left out, and tokens that are cut otherwise."""
    task, side = case
    info = (TYPED if task.is_pair else INFO).model_copy(update={"truncation_side": side})
    artifact = write_artifact(
        tmp_path / "artifact", task, info, temperature=1.0 if task.kind == "regression" else 1.7, outputs=task.outputs
    )
    rows = [["w1"], ["w2 w3"], [LONG]]
    if task.is_pair:
        rows = [["w1 w2", "w3"], [LONG, "w3"], ["w3", LONG], [LONG, LONG + " w10"], ["w1 w2 w3", LONG]]
    answers = in_node(exported(artifact, tmp_path / "page"), rows)
    with kdc.load(artifact, device="cpu", threads=1) as engine:
        expected = engine.predict([as_row(row) for row in rows])
    np.testing.assert_allclose([scores for scores, _ in answers], expected, rtol=1e-5, atol=1e-6)


def bert_tokenizer(path: Path, *, lowercase: bool) -> Path:
    """BERT's tokenizer over letters of several scripts."""
    letters = [
        chr(code) for block in ((33, 127), (0xDF, 0x100), (0x391, 0x3CA), (0x430, 0x450)) for code in range(*block)
    ]
    names = list(dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters), "𠀀", "水"]))
    pieces = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[UNK]", "[PAD]", "[CLS]", "[SEP]"])
    tokenizer.save(str(path))
    return path


@needs_packages
@needs_node
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_module_tokenizes_as_the_library_of_the_engine(lowercase: bool, tmp_path: Path) -> None:
    """Would catch the JavaScript library's own normalizer: it differs for Σ at a word's end, U+0085 and 𠀀."""
    texts = [
        "ΣΊΣΥΦΟΣ ΟΔΟΣ",
        "a\x85b c\u2028d",
        "x𠀀y水z",
        "Éa e\u0301 ÀÇ",
        "a\u200bb\x00c\ufffdd\te",
        "a[SEP]b",
        "z" * 101,
        "don't",
    ]
    tokenizer = bert_tokenizer(tmp_path / "tokenizer.json", lowercase=lowercase)
    info = INFO.model_copy(update={"max_length": 200})
    page = exported(write_artifact(tmp_path / "artifact", info=info, tokenizer=tokenizer), tmp_path / "page")
    # The graph has no rows for so many ids, so it is not run.
    answers = in_node(page, [[text] for text in texts], SCRIPT.replace("(await model.classify(row)).scores", "[]"))
    expected = Tokenizer.from_file(str(tokenizer)).encode_batch(texts)
    assert [ids for _, ids in answers] == [encoding.ids for encoding in expected]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("pairs") / "artifact", PAIR, TYPED, temperature=0.6)


@pytest.fixture(scope="module")
def address(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server of files has the page of a pair task."""
    if not all((ASSETS / package.archive).exists() for package in PACKAGES):
        pytest.skip("needs build/npm: make build/npm")
    folder = exported(pairs, tmp_path_factory.mktemp("web") / "page")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(page: Page, address: str, *texts: str) -> None:
    page.goto(address)
    page.locator("#send:enabled").wait_for()
    for place, text in enumerate(texts):
        page.locator(f"#text-{place}").fill(text)
    page.locator("#send").click()
    page.locator("#result").wait_for()


@pytest.mark.browser
def test_the_page_shows_what_the_engine_answers_and_asks_no_other_host(page: Page, address: str, pairs: Path) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    ask(page, address, "w1 w2", "w3")
    with kdc.load(pairs, device="cpu", threads=1) as engine:
        (scores,) = engine.predict([("w1 w2", "w3")])
    best_first = sorted(zip(PAIR.labels, scores, strict=True), key=lambda row: -row[1])
    rows = page.locator("#scores li")
    assert rows.locator(".label").all_text_contents() == [label for label, _ in best_first]
    assert rows.locator(".share").all_text_contents() == [f"{100 * score:.1f}%" for _, score in best_first]
    assert all(url.startswith((address, "data:")) for url in asked)
    assert wrong == []
    assert page.locator("#cut").text_content() == ""


@pytest.mark.browser
def test_the_page_tells_that_a_text_is_cut_and_that_one_is_empty(page: Page, address: str) -> None:
    ask(page, address, LONG, "w3")
    assert "reads 8 tokens" in page.locator("#cut").inner_text()
    page.locator("#text-1").fill("  ")
    page.locator("#send").click()
    page.get_by_text("A text is empty.").wait_for()


@pytest.mark.browser
def test_the_page_fits_a_phone_and_is_dark_at_night(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    ask(page, address, "w1 w2", "w3")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor"))
    assert grounds[0] != grounds[1]


@pytest.mark.browser
def test_the_page_tells_that_a_file_is_missing(page: Page, address: str) -> None:
    page.route("**/model.onnx.gzip", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.get_by_text("model.onnx cannot be fetched: HTTP 404").wait_for()
    assert page.locator("#send").is_disabled()
