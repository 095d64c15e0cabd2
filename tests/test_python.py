"""The public names of `import kdc`, and the examples of docs/how-to/use-from-python.md, run one after another."""

import csv
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from tiny_models import WORDS

import kdc

PAGE = tiny_runs.ROOT / "docs" / "how-to" / "use-from-python.md"


def examples() -> dict[str, str]:
    """The page's Python blocks by the heading above them."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", section, re.S)) for section in sections
    }


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the first example defines, in a folder with the files that the page speaks of."""
    folder = tmp_path_factory.mktemp("reviews")
    tiny_runs.base_model("bert", folder / "encoder")
    generator = random.Random(0)
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("review", "mood"))
        for _ in range(700):
            good = generator.random() < 0.5
            writer.writerow(
                (" ".join(["w1" if good else "w2", *generator.choices(WORDS[3:], k=4)]), "good" if good else "bad")
            )
    sections: dict[str, list[str]] = {}
    for key, _, value in (setting.partition("=") for setting in (*tiny_runs.QUICK, "student.model=static")):
        section, _, name = key.rpartition(".")
        quoted = value if re.fullmatch(r"[\d.e-]+|true|false", value) else f'"{value}"'
        sections.setdefault(section, []).append(f"{name} = {quoted}")
    toml = "\n".join(f"[{section}]\n" + "\n".join(lines) for section, lines in sections.items())
    (folder / "kdc.toml").write_text(toml, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(examples()["Compress"], str(PAGE), "exec"), scope)
    yield scope
    os.chdir(before)


def run(heading: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(examples()[heading], str(PAGE), "exec"), names)
    return names


def test_compress_returns_the_artifact_the_metrics_and_the_verdict(names: dict[str, Any]) -> None:
    result = names["result"]
    assert result.artifact == Path("runs/reviews/artifact")
    assert (result.artifact / "manifest.json").is_file()
    assert {"teacher", "student", "fp32"} <= set(result.metrics)
    assert result.verdict is None  # no contract was asked for


def test_a_loaded_artifact_answers_in_its_labels(names: dict[str, Any]) -> None:
    scope = run("Load and predict", names)
    assert scope["probabilities"].shape == (2, 2)
    assert np.allclose(scope["probabilities"].sum(axis=1), 1, atol=1e-5)
    assert set(scope["labels"]) <= {"good", "bad"}
    assert scope["logits"].shape == (1, 2)


def test_verify_judges_the_contract_that_it_is_given(names: dict[str, Any]) -> None:
    judgement = run("Check an artifact against limits", names)["judgement"]
    assert (judgement.verdict, judgement.missed) == ("pass", ())
    tight = kdc.verify("runs/reviews/artifact", contract=kdc.Contract(limits={"max_size_mb": 1e-6}))
    assert tight.verdict == "fail"


def test_any_two_models_can_be_judged(names: dict[str, Any]) -> None:
    seen = run("Judge any two models", names)["seen"]
    assert (seen.verdict, seen.difference, seen.groups, seen.rows_needed) == ("pass", -0.5, 1000, None)
    few = kdc.judge(names["student"][:100], names["teacher"][:100], names["labels"][:100])
    assert few.verdict == "not shown"
    assert few.rows_needed is None or few.rows_needed > 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.zeros(3, int)}, "labels do not fit"),
        ({"student": np.zeros((4, 3))}, "same rows"),
        ({"student": np.full((4, 2), np.nan)}, "not every value is a number"),
        ({"student": np.zeros((4, 0)), "teacher": np.zeros((4, 0))}, "must be \\(rows, outputs\\)"),
        ({"kind": "regression", "metric": "pearson"}, "one output"),
        ({"kind": ["classification"]}, "no such kind"),
        ({"groups": [None] * 4}, "a row has no group"),
        ({"groups": [1.0, np.nan, 2.0, 3.0]}, "a row has no group"),
        ({"labels": np.array([0, 1, 2, 0])}, "indices of the outputs"),
        ({"groups": ["a", "b"]}, "groups do not fit"),
        ({"metric": "accuracies"}, "no such metric"),
        ({"metric": "pearson"}, "no such metric of classification"),
        ({"kind": "multilabel", "labels": np.eye(2)[[0, 1, 0, 1]], "metric": "f1"}, "no such metric of multilabel"),
        ({"kind": "multilabel", "labels": 2 * np.eye(2)[[0, 1, 0, 1]], "metric": "macro_f1"}, "are 0 or 1"),
        ({"kind": "foo"}, "no such kind"),
        ({"labels": ["a", "b", "a", "b"]}, "do not hold numbers"),
        ({"labels": np.array([0.5, 1, 0, 1])}, "indices of the outputs"),
        ({"max_drop": None}, "max_drop is missing"),
        ({"max_drop": -1}, "max_drop"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes: dict[str, Any], words: str) -> None:
    given = {"student": np.eye(2)[[0, 1, 0, 1]], "teacher": np.eye(2)[[0, 1, 0, 1]], "labels": np.array([0, 1, 0, 1])}
    with pytest.raises(kdc.InputError, match=words):
        kdc.judge(**given | changes)


def test_an_error_says_what_was_given_and_what_to_do(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("Errors", names)
    assert "runs/nothing/artifact" in capsys.readouterr().out


def test_every_public_name_is_documented_and_there() -> None:
    reference = tiny_runs.ROOT / "docs" / "reference" / "python.md"
    text = PAGE.read_text(encoding="utf-8") + reference.read_text(encoding="utf-8")
    for name in kdc.__all__:
        assert getattr(kdc, name) is not None
        assert f"kdc.{name}" in text or name == "Engine"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        kdc.nothing_like_it  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 2}, r"teacher\.epochs, student\.epochs"),
        ({"famly": "bert"}, "did you mean family"),
        ({"student": {"epoch": 2}}, "unknown setting student.epoch"),
    ],
)
def test_a_wrong_keyword_names_the_right_one(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(kdc.InputError, match=words):
        kdc.compress(task="pydocs", **settings)


def test_importing_kdc_loads_nothing_heavy() -> None:
    """Would catch an import at the top of __init__.py, or of what it imports there."""
    code = (
        "import sys; before = set(sys.modules); import kdc; new = set(sys.modules) - before;"
        "print(sorted({name.partition('.')[0] for name in new} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['kdc']"
