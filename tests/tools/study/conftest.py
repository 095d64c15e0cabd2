"""A study of tiny models that several files do, each in a directory of its own."""

from pathlib import Path

import pytest
import tiny_runs

from kdc.tools.study.grid import Grid

METHODS = ("fft", "lora", "kd-lora", "student-lora", "student-fft", "tfidf")


def write_glue(folder: Path) -> Path:
    """SST-2 in GLUE's layout: whether a sentence holds w1 or w2."""
    task = folder / "SST-2"
    task.mkdir(parents=True)
    for name, count, seed in (("train", 500, 1), ("dev", 60, 2)):
        rows = tiny_runs.write_rows(folder / "rows.csv", count, seed=seed, label=lambda yes, _: "1" if yes else "0")
        lines = [line.rsplit(",", 2) for line in rows.read_text().splitlines()[1:]]
        text = "".join(f"{first}\t{label}\n" for first, _, label in lines)
        (task / f"{name}.tsv").write_text(f"sentence\tlabel\n{text}")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    folder = tmp_path_factory.mktemp("study")
    teacher = tiny_runs.base_model("bert", folder / "teacher")
    sets = (*tiny_runs.QUICK, "baselines.enabled=true", f"teacher.model={teacher}", "student.model=layers:first-half")
    flags = (("data.data", write_glue(folder / "glue")), ("run.recipe", "best"))
    return Grid(("sst2",), ("minilm",), METHODS, (4,), (1,), folder / "out", sets, flags)
