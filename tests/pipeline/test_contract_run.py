"""A contract from the command line to the server: judged, refused, warned of, judged again elsewhere."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta
from tiny_runs import arguments, base_model, kdc, write_rows

from kdc.artifact.contract.terms import Contract, Limits
from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.common.errors import InputError
from kdc.pipeline.models import loading
from kdc.pipeline.report.page import write_report
from kdc.serving.http.registry import Registry, verify
from kdc.serving.http.settings import ServeSettings
from kdc.tools.verify import verify_artifact

pytestmark = pytest.mark.slow

COSTS = ("--max-size-mb", "50", "--max-latency-ms", "1000")


class Contracted:
    """A finished tiny run whose commands go on where it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = base_model("bert", folder / "teacher", num_hidden_layers=2)
        write_rows(folder / "train.csv", 400, seed=1)
        write_rows(folder / "eval.csv", 200, seed=2)
        self.passed = folder  # the artifact that kept its contract, once it is made

    def compress(self, *more: str) -> Any:
        done = kdc(*arguments(self.folder, self.teacher, *more), "--json")
        self.result = json.loads(done.stdout)["result"] if done.returncode in (0, 3, 4) else {}
        assert done.returncode in (0, 3, 4), done.stderr
        return done

    @property
    def root(self) -> Path:
        return self.folder / "run"

    @property
    def made(self) -> Path:
        return self.root / self.result["artifact"]


@pytest.fixture(scope="module")
def contracted(tmp_path_factory: pytest.TempPathFactory) -> Contracted:
    run = Contracted(tmp_path_factory.mktemp("contracted"))
    assert run.compress(*COSTS, "--max-drop", "60").returncode == 0
    run.passed = run.made.resolve()
    return run


def copy_with(artifact: Path, to: Path, **changes: Any) -> Path:
    """A copy whose contract says something else."""
    shutil.copytree(artifact, to)
    manifest = load_manifest(to)
    assert manifest.contract is not None
    changed = manifest.contract.model_copy(update=changes)
    (to / "manifest.json").unlink()
    write_manifest(to, manifest.model_copy(update={"contract": changed}))
    return to


def test_a_kept_contract_is_in_the_manifest_with_what_was_found(contracted: Contracted) -> None:
    manifest = load_manifest(contracted.passed)
    judged = manifest.contract
    assert judged is not None
    assert judged.verdict == "pass"
    assert judged.contract.limits.max_size_mb == 50
    assert judged.variant == manifest.providers["CPUExecutionProvider"]
    size_bytes = manifest.variants[judged.variant].size_bytes  # type: ignore[index]
    assert judged.costs.size_mb == size_bytes / 1e6
    assert judged.quality is not None
    table = manifest.metrics
    assert judged.quality.teacher == pytest.approx(table["teacher"]["macro_f1"])
    assert judged.quality.student == pytest.approx(table[judged.variant]["macro_f1"])
    assert "contract: pass" in (contracted.passed / "README.md").read_text(encoding="utf-8")


def judge_as_if(contracted: Contracted, wrong: int, *limits: str) -> Any:
    """Judge once more, as if the student had that many rows wrong that the teacher has right."""
    kept = contracted.root / "evaluate" / "logits.npz"
    original = kept.read_bytes()
    with np.load(kept) as arrays:
        logits = {name: arrays["eval/teacher"].copy() for name in arrays.files}
    for name in set(logits) - {"eval/teacher"}:
        logits[name][:wrong] *= -1
    np.savez_compressed(kept, **logits)
    try:
        return contracted.compress(*limits, "--from", "package")
    finally:
        kept.write_bytes(original)


def test_a_report_needs_no_teacher(contracted: Contracted, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(source: str, **_: Any) -> None:
        raise InputError("cannot load the model's config", given=source)

    monkeypatch.setattr(loading, "open_config", gone)
    candidates = write_report(contracted.root).candidates
    assert candidates is not None
    assert candidates.chosen in candidates.measured


def test_a_failed_contract_leaves_with_3_and_is_not_served(contracted: Contracted) -> None:
    before = os.readlink(contracted.root / "artifact")
    done = judge_as_if(contracted, 40, *COSTS, "--max-drop", "1")
    assert done.returncode == 3
    stages = json.loads(done.stdout)["stages"]
    assert [name for name, stage in stages.items() if not stage["skipped"]] == ["package"]
    assert contracted.made.parent.name == "rejected"
    assert os.readlink(contracted.root / "artifact") == before  # who serves it goes on
    settings = ServeSettings(artifact=f"model={contracted.made}")
    with pytest.raises(InputError, match="failed its contract"):
        verify(settings)
    with pytest.raises(InputError, match="failed its contract"):
        Registry(settings)._open("model")
    verify(settings.model_copy(update={"allow_failed": True}))
    again = contracted.compress(*COSTS, "--max-drop", "1")
    assert again.returncode == 3
    assert all(stage["skipped"] for stage in json.loads(again.stdout)["stages"].values())


def test_what_rows_cannot_show_leaves_with_4_and_is_served_with_a_warning(
    contracted: Contracted, caplog: pytest.LogCaptureFixture
) -> None:
    done = judge_as_if(contracted, 2, *COSTS, "--max-drop", "1.5")
    assert done.returncode == 4
    quality = contracted.result["contract"]["quality"]
    assert quality["rows_needed"] > quality["rows"]
    with caplog.at_level(logging.WARNING, "kdc.serve"):
        Registry(ServeSettings(artifact=f"model={contracted.made}"))._open("model")
    assert "not shown" in caplog.text


def test_verify_judges_again_and_needs_no_teacher_for_its_own_rows(contracted: Contracted) -> None:
    done = kdc("verify", str(contracted.passed), "--data", str(contracted.folder / "eval.csv"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    promised = load_manifest(contracted.passed).contract
    assert promised is not None
    assert promised.quality is not None
    assert found["quality"] == promised.quality.model_dump(mode="json")  # the same rows and arithmetic
    # Asked with the teacher, they are the evaluation's rows all the same: its groups, and its look.
    teacher = ("--teacher", str(contracted.root / "teacher" / "model"))
    done = kdc("verify", str(contracted.passed), "--data", str(contracted.folder / "eval.csv"), *teacher, "--json")
    again = json.loads(done.stdout)["quality"]
    assert {name: again[name] for name in ("groups", "look", "rows")} == {
        name: found["quality"][name] for name in ("groups", "look", "rows")
    }
    strict = kdc("verify", str(contracted.passed), "--max-size-mb", "0.01")
    assert strict.returncode == 3
    assert "size is" in strict.stdout


def test_shares_are_verified_with_the_groups_of_the_evaluation(contracted: Contracted, tmp_path: Path) -> None:
    """Would catch a verdict that is surer than the one of `kdc compress`, by rows that belong together."""
    artifact = shutil.copytree(contracted.passed, tmp_path / "artifact")
    with np.load(artifact / "evaluation.npz") as kept:
        arrays = dict(kept)
    arrays["group"] = np.arange(len(arrays["group"])) // 3
    np.savez(artifact / "evaluation.npz", **arrays)
    manifest = load_manifest(contracted.passed)
    write_manifest(
        artifact,
        manifest.model_copy(update={"files": manifest.files | describe_files(artifact, ["evaluation.npz"])}),
    )
    asked = Contract(limits=Limits(require=("accuracy>=0.5",)))
    judged, _ = verify_artifact(artifact, contract=asked, data=contracted.folder / "eval.csv")
    rate = judged.required[0].rate
    _, sizes = np.unique(arrays["group"], return_counts=True)
    count = rate.of**2 / (sizes**2).sum()
    right = count * rate.hits / rate.of
    assert rate.of == len(arrays["group"])
    assert rate.low == pytest.approx(beta.ppf(0.025, right, count - right + 1), abs=1e-6)


def test_a_drop_that_was_too_large_is_so_without_rows_too(contracted: Contracted) -> None:
    judge_as_if(contracted, 40, *COSTS, "--max-drop", "1")
    done = kdc("verify", str(contracted.made))
    assert done.returncode == 3
    assert "quality was not checked again" in done.stdout


def test_a_drop_nobody_found_cannot_be_judged_without_rows(contracted: Contracted, tmp_path: Path) -> None:
    manifest = load_manifest(contracted.passed)
    plain = shutil.copytree(contracted.passed, tmp_path / "plain")
    (plain / "manifest.json").unlink()
    write_manifest(plain, manifest.model_copy(update={"contract": None}))
    done = kdc("verify", str(plain), "--max-drop", "1")
    assert done.returncode == 2
    assert "without rows" in done.stderr
    assert kdc("verify", str(plain)).returncode == 2  # nothing is asked
    assert kdc("verify", str(plain), "--max-size-mb", "50").returncode == 0


def test_verify_says_when_quality_was_not_checked(contracted: Contracted) -> None:
    done = kdc("verify", str(contracted.passed))
    assert done.returncode == 0, done.stderr
    assert "quality was not checked" in done.stdout


def test_other_rows_need_the_teacher(contracted: Contracted, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "other.csv", 60, seed=3))
    done = kdc("verify", str(contracted.passed), "--data", rows)
    assert done.returncode == 2
    assert "60 of 60 rows" in done.stderr
    teacher = str(contracted.root / "teacher" / "model")
    with_teacher = kdc("verify", str(contracted.passed), "--data", rows, "--teacher", teacher, "--json")
    assert with_teacher.returncode == 0, with_teacher.stderr
    found = json.loads(with_teacher.stdout)["quality"]
    assert found["rows"] == 60
    # The tiny task is learned to the last row or nearly so, which a teacher that answers other rows would not be.
    assert found["teacher"] > 90


def test_a_teacher_may_have_its_vocabulary_alone(contracted: Contracted, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(contracted.root / "teacher" / "model", teacher)
    vocabulary = json.loads((teacher / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (teacher / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    (teacher / "tokenizer.json").unlink()
    (teacher / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    rows = str(write_rows(tmp_path / "other.csv", 60, seed=3))
    done = kdc("verify", str(contracted.passed), "--data", rows, "--teacher", str(teacher), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quality"]["teacher"] > 90


def test_an_artifact_that_was_judged_elsewhere_is_said_to_be_so(
    contracted: Contracted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = copy_with(contracted.passed, tmp_path / "moved", cpu="Another CPU 9000")
    with caplog.at_level(logging.WARNING, "kdc.serve"):
        Registry(ServeSettings(artifact=f"model={moved}"))._open("model")
    assert "judged on another CPU (Another CPU 9000" in caplog.text
    done = kdc("verify", str(moved))
    assert done.returncode == 0, done.stderr
    assert "another CPU, Another CPU 9000: pass" in done.stdout


def test_an_earlier_quality_does_not_answer_another_question(contracted: Contracted, tmp_path: Path) -> None:
    done = kdc("verify", str(contracted.passed), "--max-drop", "59")
    assert done.returncode == 2
    assert "was judged by --max-drop 60" in done.stderr
    promised = load_manifest(contracted.passed).contract
    assert promised is not None
    other = {"int8": "fp32", "fp32": "int8"}[promised.variant]
    done = kdc("verify", str(copy_with(contracted.passed, tmp_path / "other", variant=other)))
    assert done.returncode == 2
    assert f"{other} was judged by" in done.stderr


def test_fewer_threads_than_were_judged_are_said_to_be_so(
    contracted: Contracted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged = load_manifest(contracted.passed).contract
    assert judged is not None
    here = judged.threads
    assert here is not None
    wide = copy_with(contracted.passed, tmp_path / "wide", threads=here + 7)
    with caplog.at_level(logging.WARNING, "kdc.serve"):
        Registry(ServeSettings(artifact=f"model={wide}"))._open("model")
    assert f"judged with {here + 7} threads, and {here} serve" in caplog.text
    assert f"with {here + 7} threads instead of {here}" in kdc("verify", str(wide)).stdout


def test_a_changed_artifact_is_a_failure_of_verify(contracted: Contracted, tmp_path: Path) -> None:
    broken = shutil.copytree(contracted.passed, tmp_path / "broken")
    with (broken / "model.onnx").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    done = kdc("verify", str(broken))
    assert done.returncode == 1
    assert "was changed" in done.stderr
