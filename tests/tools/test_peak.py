"""The share of the CPU's peak that a pass of an artifact reaches."""

from pathlib import Path

import pytest
from bag_models import write_artifact

from kdc.pipeline.quality import products
from kdc.tools.bench import profile
from kdc.tools.bench.profile import peak_share
from kdc.tools.bench.result import Loaded


def _loaded(**changes: object) -> Loaded:
    given = {"runtime": "onnxruntime", "variant": "fp32", "on": "CPUExecutionProvider", "threads": 2}
    return Loaded.model_validate(given | {"notes": (), "longest": 64} | changes)


def test_the_share_is_the_time_at_the_peak_of_the_time_that_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bugs to catch: the ratio the other way round, one format's peak for both, one thread's, another batch's work.
    monkeypatch.setattr(
        profile,
        "operations",
        lambda file, feeds: {"int8": 600 * feeds["input_ids"].size, "fp32": 10 * len(feeds["input_ids"])},
    )
    monkeypatch.setattr(
        products, "speed", lambda number_format, threads: {"int8": 1000, "fp32": 100}[number_format] * threads
    )
    share = peak_share(write_artifact(tmp_path / "artifact"), _loaded(), 3, 8, 20.0)
    assert share == pytest.approx((3 * 8 * 600 / 2000 + 3 * 10 / 200) / 20)


def test_it_is_not_told_of_rows_that_no_single_pass_takes(tmp_path: Path) -> None:
    """Would catch a row in windows counted as one pass of all its tokens, for which the model has no positions."""
    assert peak_share(write_artifact(tmp_path / "artifact"), _loaded(), 1, 1_000_000, 1.0) is None


@pytest.mark.parametrize(
    "changes", [{"on": "CUDAExecutionProvider"}, {"variant": "fp16"}, {"on": "cpu", "variant": "float32"}]
)
def test_it_is_not_told_where_there_is_no_peak_to_compare_with(changes: dict[str, str], tmp_path: Path) -> None:
    assert peak_share(tmp_path, _loaded(**changes), 1, 8, 1.0) is None
