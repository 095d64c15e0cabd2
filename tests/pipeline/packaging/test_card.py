"""The model card shows names as they are, whatever they hold: they come from tables and folders of others."""

from pathlib import Path

import pytest
from bag_models import write_artifact
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import Manifest
from kdc.common.tables import code, markdown, plain
from kdc.pipeline.packaging.card import model_card
from kdc.pipeline.packaging.hugging_face import card_metadata
from kdc.pipeline.results.artifact import QuantizeResult

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://host/pixel.png)",
    "a`b``c",
    "x` <b>y</b> `z",
    "a | b",
    "*bold* __init__ _x_ **y**",
    "&lt;&#106;",
    "\\<b>",
    "\n---\nlicense: mit\n---\n",
    "\n\n# heading\n\n<hr>\n\n```\n",
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(write_artifact(tmp_path_factory.mktemp("runs") / "artifact"))


def structure(text: str) -> list[str]:
    """What a Markdown text is made of, by an independent reader: all tokens but texts and code."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    return [token.type for token in [*tokens, *inner] if token.type not in ("text", "text_special", "code_inline")]


def words(text: str) -> str:
    """The texts and code of a Markdown text on one line."""
    return "".join(
        child.content
        for token in MarkdownIt("commonmark").parse(text)
        for child in token.children or ()
        if child.content
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    line = " ".join(name.split())
    for made in (plain(name), code(name)):
        assert words(f"of {made} and") == f"of {line} and"
        assert set(structure(f"of {made} and")) <= {"paragraph_open", "inline", "paragraph_close"}
    plainly = structure(markdown([["name", "n"], ["x", "1"]]))
    assert structure(markdown([["name", "n"], [name, "1"]])) == plainly


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_has_the_same_structure_whatever_the_names(manifest: Manifest, tmp_path: Path, name: str) -> None:
    def card(named: str) -> str:
        labels = (named, *manifest.task.labels[1:])
        task = manifest.task.model_copy(update={"name": named, "labels": labels, "text": named})
        lineage = manifest.lineage.model_copy(update=dict.fromkeys(("teacher", "student", "recipe", "cpu"), named))
        changed = manifest.model_copy(update={"task": task, "lineage": lineage})
        int8 = QuantizeResult(temperature=1.0, int8=True, winner=named)
        text = model_card(changed, int8, None, "text", teacher=named, adapted=False)
        return card_metadata(changed, models=[named], dataset=None) + text

    (tmp_path / "README.md").write_text(card(name), encoding="utf-8")
    (tmp_path / "plain.md").write_text(card("mood"), encoding="utf-8")
    hostile, harmless = (ModelCard.load(tmp_path / file) for file in ("README.md", "plain.md"))
    assert structure(hostile.text) == structure(harmless.text)
    assert hostile.data.to_dict().keys() == harmless.data.to_dict().keys()
    assert hostile.data.model_name == name


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        ({"temperature": 1.0, "folded_temperature": 1.7}, "softmax(logits)"),
        ({"temperature": 1.7}, "softmax(logits / 1.7)"),
    ],
)
def test_a_card_divides_only_logits_that_are_not_divided_yet(
    manifest: Manifest, changes: dict[str, float], formula: str
) -> None:
    with_config = {"files": manifest.files | {"config.json": manifest.files["tokenizer.json"]}}
    int8 = QuantizeResult(temperature=1.0, int8=True, winner="")
    text = model_card(manifest.model_copy(update=with_config | changes), int8, None, "", teacher="", adapted=False)
    assert f"`{formula}`" in text
