"""The real thing, when its data and weights are at hand: MiniLM on rows of SST-2. Minutes long."""

import json
import os
from pathlib import Path

import pytest
from tiny_runs import ROOT, kdc

from kdc.pipeline.models.minilm import HUB_ID, find_minilm

GLUE = Path(os.environ.get("KDC_GLUE_DIR", ROOT.parent / "shared" / "data" / "glue"))


@pytest.mark.slow
@pytest.mark.skipif(not (GLUE / "SST-2" / "train.tsv").exists(), reason="no SST-2 rows here (KDC_GLUE_DIR names GLUE)")
@pytest.mark.skipif(find_minilm() == HUB_ID, reason="MiniLM's weights are not installed (requirements-minilm.txt)")
def test_minilm_on_real_rows_keeps_what_its_teacher_knows(tmp_path: Path) -> None:
    done = kdc(
        "compress",
        "--task",
        "sst2",
        "--data",
        str(GLUE),
        "--family",
        "minilm",
        "--max-train-rows",
        "2000",
        "--epochs",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--json",
        OMP_NUM_THREADS="2",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    table = result["table"]
    assert table["teacher"]["accuracy"] > 75
    assert table["fp32"]["accuracy"] > 0.95 * table["teacher"]["accuracy"]
    assert table["fp32"]["accuracy"] == pytest.approx(table["merged"]["accuracy"], abs=0.3)
    assert table["int8"]["size_bytes"] < 90_900_000 / 5
    answer = json.loads(kdc("try", str(tmp_path / "run" / "artifact"), "a charming and moving film", "--json").stdout)
    assert answer["scores"][0]["label"] == "positive"
