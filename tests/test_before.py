"""An artifact as kdc 0.1 wrote it loads, is verified and answers; only its models are replaced by tiny ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import bag_models
import numpy as np
import pytest

import kdc
from kdc.artifact.folder import load_manifest

MANIFEST = Path(__file__).parent / "artifact" / "manifest_of_0.1.json"
ROW = ("w1 w2", "w3")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The manifest's own keys and values, with the hashes of the files that are here."""
    document = json.loads(MANIFEST.read_text(encoding="utf-8"))
    for name in ("model.onnx", "model.int8.onnx", "model.fp16.onnx"):
        bag_models.make_graph(tmp_path / name, typed=True, outputs=2)
    bag_models.make_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "README.md").write_text("# A model card\n", encoding="utf-8")
    logits = np.zeros((2, 2), np.float32)
    hashes = np.array([hashlib.sha256(text.encode()).hexdigest() for text in ROW])
    arrays: dict[str, Any] = dict.fromkeys(("teacher_logits", "student_logits", "student_int8_logits"), logits)
    np.savez(tmp_path / "evaluation.npz", text_sha256=hashes, label=np.array([0, 1]), **arrays)
    for name, entry in document["files"].items():
        content = (tmp_path / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    del document["sha256"]
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def test_it_answers_as_its_graph_and_its_temperature_say(artifact: Path) -> None:
    with kdc.load(artifact, device="cpu", threads=1) as engine:
        answer = engine.predict([ROW])
    logits = bag_models.expected_logits(*ROW, typed=True)[:2] / json.loads(MANIFEST.read_text())["temperature"]
    powers = np.exp(logits - logits.max())
    np.testing.assert_allclose(answer[0], powers / powers.sum(), rtol=1e-4)


def test_its_contract_is_judged_again(artifact: Path) -> None:
    judgement = kdc.verify(artifact)
    assert judgement.verdict == "pass"
    assert judgement.contract.limits.max_latency_ms == 1000


def test_a_changed_file_is_found(artifact: Path) -> None:
    (artifact / "README.md").write_text("# A model cord\n", encoding="utf-8")
    with pytest.raises(kdc.KdcError, match="changed"):
        load_manifest(artifact)
