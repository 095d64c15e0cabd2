"""How common each label was in training: from the training rows into the manifest, and from there into the metrics."""

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import SINGLE, WORDS, expected_logits, write_artifact
from conftest import Finished
from live import running, served
from prometheus_client.parser import text_string_to_metric_families
from transfers import seal

from kdc.artifact.folder import load_manifest, write_manifest
from kdc.artifact.manifest import Kind, TaskInfo
from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.packaging.lineage import label_share

TAGS = TaskInfo(name="tags", kind="multilabel", labels=("x", "y", "z"))
NUMBER = TaskInfo(name="stars", kind="regression")
TEXTS = [f"w{number}" for number in range(12)]


def with_share(folder: Path, share: tuple[float, ...] | None) -> Path:
    manifest = load_manifest(folder)
    lineage = manifest.lineage.model_copy(update={"label_share": share})
    write_manifest(folder, manifest.model_copy(update={"lineage": lineage}))
    return folder


def samples(url: str, name: str) -> dict[str, float]:
    """Label -> value."""
    return {
        sample.labels.get("label", ""): sample.value
        for family in text_string_to_metric_families(httpx2.get(f"{url}/metrics").text)
        for sample in family.samples
        if sample.name == name
    }


def test_the_manifest_tells_the_training_rows(finished: Finished) -> None:
    report = json.loads((finished.folder / "run" / "data" / "report.json").read_text(encoding="utf-8"))
    counts = report["splits"]["train"]["labels"]
    manifest = load_manifest(finished.artifact)
    assert manifest.lineage.label_share is not None
    wanted = [counts[label] / sum(counts.values()) for label in manifest.task.labels]
    assert manifest.lineage.label_share == pytest.approx(wanted, abs=1e-6)
    assert sum(manifest.lineage.label_share) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "labels", "wanted"),
    [
        ("classification", [2, 0, 0, 2], (0.5, 0.0, 0.5)),
        ("multilabel", [[1, 1, 0], [1, 0, 0]], (1.0, 0.5, 0.0)),
        ("regression", [1.5, 2.5], None),
    ],
)
def test_shares_by_kind(kind: Kind, labels: list[Any], wanted: tuple[float, ...] | None) -> None:
    names = () if kind == "regression" else ("bad", "so so", "good")
    assert label_share(np.array(labels), custom_task("mood", "text", None, "label", kind, names)) == wanted


def test_an_artifact_from_before_loads_and_keeps_its_sha(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path)
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del document["lineage"]["label_share"]  # as it was written before there was such a field
    document = seal(document)
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    manifest = load_manifest(folder, expect_sha256=document["sha256"])
    assert manifest.lineage.label_share is None
    with running(folder) as url:
        assert samples(url, "kdc_training_label_share") == {}
        assert samples(url, "kdc_predictions_total") == {"bad": 0, "so so": 0, "good": 0}


@pytest.mark.parametrize("share", [(0.5, 0.5), (1.5, -0.2, -0.3)])
def test_shares_that_do_not_fit_the_labels_are_refused(share: tuple[float, ...], tmp_path: Path) -> None:
    folder = write_artifact(tmp_path)
    with pytest.raises(KdcError, match="the manifest does not follow its schema"):
        with_share(folder, share)


def test_predictions_and_training_share_of_classes(tmp_path: Path) -> None:
    with running(with_share(write_artifact(tmp_path), (0.5, 0.2, 0.3))) as url:
        httpx2.post(f"{url}/predict", json={"inputs": [[text] for text in TEXTS]})
        best = np.array([expected_logits(text) for text in TEXTS]).argmax(axis=1)
        counts = dict(zip(SINGLE.labels, np.bincount(best, minlength=3).tolist(), strict=True))
        assert samples(url, "kdc_predictions_total") == counts
        assert samples(url, "kdc_rows_total") == {"": len(TEXTS)}
        assert samples(url, "kdc_training_label_share") == {"bad": 0.5, "so so": 0.2, "good": 0.3}


def test_multilabel_rows_count_under_each_label_that_they_get(tmp_path: Path) -> None:
    assert set(TEXTS) <= set(WORDS)
    with running(with_share(write_artifact(tmp_path, TAGS), (1.0, 0.5, 0.0))) as url:
        httpx2.post(f"{url}/predict", json={"inputs": [[text] for text in TEXTS]})
        given = (np.array([expected_logits(text) for text in TEXTS]) >= 0).sum(axis=0)
        assert given.sum() != len(TEXTS)
        assert samples(url, "kdc_predictions_total") == dict(zip(TAGS.labels, given.tolist(), strict=True))
        assert samples(url, "kdc_rows_total") == {"": len(TEXTS)}


def test_regression_has_rows_and_no_labels(tmp_path: Path) -> None:
    with running(write_artifact(tmp_path, NUMBER, outputs=1)) as url:
        httpx2.post(f"{url}/predict", json={"inputs": "w1"})
        assert samples(url, "kdc_rows_total") == {"": 1}
        assert samples(url, "kdc_predictions_total") == samples(url, "kdc_training_label_share") == {}


def test_two_workers_tell_the_share_once_and_their_rows_together(tmp_path: Path) -> None:
    folder = with_share(write_artifact(tmp_path / "artifact"), (0.5, 0.2, 0.3))
    with served(tmp_path, str(folder), "--workers", "2") as service:
        for _ in range(10):
            httpx2.post(f"{service.url}/predict", json={"inputs": "w1"})  # each over a connection of its own
        assert samples(service.url, "kdc_training_label_share") == {"bad": 0.5, "so so": 0.2, "good": 0.3}
        assert samples(service.url, "kdc_rows_total") == {"": 10}
        assert samples(service.url, "kdc_queue_tokens") == {"": 0}
