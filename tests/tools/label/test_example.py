"""examples/replace-a-model-call, with few texts: it ends well, and writes what its README promises. A minute long."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from live import ROOT, free_port

from kdc.pipeline.models.minilm import HUB_ID, find_minilm

RUN = ROOT / "examples" / "replace-a-model-call" / "run.py"
TEXTS, FRESH, AUDITED = 1500, 600, 500


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
@pytest.mark.skipif(find_minilm() == HUB_ID, reason="MiniLM's weights are not installed (requirements-minilm.txt)")
def test_the_example_goes_from_a_log_to_a_served_student_and_draws_what_it_found(tmp_path: Path) -> None:
    folder = tmp_path / "replaced"
    command = [sys.executable, str(RUN), str(folder), "--texts", str(TEXTS), "--steps", "100"]
    environment = {**os.environ, "PORT": str(free_port()), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    logged, fresh, audited = (rows_of(folder / f"{name}.csv") for name in ("logged", "fresh", "audit"))
    assert (len(logged), len(fresh), len(audited)) == (TEXTS - FRESH, FRESH, AUDITED)
    assert not {row["sentence"] for row in logged} & {row["sentence"] for row in fresh}
    assert all(list(row.values())[-1] for row in audited)

    served = re.search(rf"local share: ([\d.]+) % of {FRESH} new texts", done.stdout)
    assert served is not None
    assert 0 < float(served[1]) < 100
    manifest = json.loads((folder / "run" / "artifact" / "manifest.json").read_text())
    answered = manifest["task"]["abstain"]["evaluation"]["coverage"]
    title = ElementTree.parse(folder / "agreement.svg").findtext(".//{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert f"The student answers {100 * answered['hits'] / answered['of']:.0f} % of the texts" in title
