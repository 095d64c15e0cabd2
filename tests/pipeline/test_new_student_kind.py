"""A new kind of student is one class in `KINDS`: it is searched, trained, exported, judged, described and served."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import live
import numpy as np
import pytest
import tiny_runs
import torch
from conftest import Finished
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import KINDS, OwnTraining, StudentKind
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.models import possible_cuts
from kdc.pipeline.models.cutting import Cut
from kdc.pipeline.models.loading import Loaded
from kdc.pipeline.models.pooling import mean_of_tokens
from kdc.pipeline.report.page import write_report
from kdc.pipeline.results.training import SearchResult
from kdc.pipeline.rundir.record import read_result
from kdc.pipeline.stages import search
from kdc.pipeline.stages.candidates import curve_of


class MeanClassifier(PreTrainedModel):
    """The mean of the token vectors, and a head."""

    base_model_prefix = "mean"
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.vectors: Any = nn.Embedding(config.vocab_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vectors

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vectors = value

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.classifier(mean_of_tokens(self.vectors(input_ids), attention_mask)))


class Mean(StudentKind):
    """The toy kind."""

    name = "mean"
    own_training = OwnTraining(steps=2, learning_rate=3e-2, head_learning_rate=3e-2)

    def make(self, spec: str, task: Task, teacher: Callable[[], Any], importance: Callable[..., Any]) -> Any:
        whole = teacher().model
        config = copy.deepcopy(whole.config)
        config.kdc_mean = True
        model = MeanClassifier(config)
        model.vectors.weight.data.copy_(whole.get_input_embeddings().weight)
        return Loaded(model, ("classifier",))

    def model_class(self, config: PretrainedConfig) -> Any:
        return MeanClassifier if getattr(config, "kdc_mean", False) else None


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kind, in the place of others without layers, which would take their time."""
    monkeypatch.setattr(possible_cuts, "half_width", lambda teacher: Cut(()))
    before = dict(KINDS)
    for name in [name for name, kind in KINDS.items() if not kind.has_layers]:
        del KINDS[name]
    KINDS["mean"] = Mean()
    yield
    KINDS.clear()
    KINDS.update(before)


@pytest.fixture
def begun(finished: Finished, tmp_path: Path) -> Callable[..., Config]:
    """Settings of a run whose teacher has answered already."""
    shutil.copytree(finished.folder / "run", tmp_path / "run", symlinks=True)

    def config(student: str, *sets: str) -> Config:
        flags = {"run.out": tmp_path / "run", "student.model": student, "student.vocabulary": "all"}
        return tiny_runs.config_for(finished.folder, finished.teacher, *sets, flags=flags)

    return config


def test_a_search_and_a_frontier_try_it(begun: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_FIRST_STEPS", 8)
    config = begun("layers:1", "contract.max_size_mb=100", "contract.search=quick")
    tiny_runs.compress(config, until="search")
    trials = read_result(Path(str(config.run.out)), SearchResult).trials
    assert [trial.student for trial in trials] == ["layers:1", "mean", "teacher"]
    assert {"layers:1", "teacher", "mean"} <= set(curve_of(config))


def test_it_ends_as_an_artifact_that_serves(begun: Callable[..., Config]) -> None:
    config = begun("mean")
    assert (config.student.method, config.student.learning_rate) == ("full", 1e-2)  # the rate is set for all students
    result = tiny_runs.compress(config)
    assert result.stages["teacher"].skipped
    assert result.artifact is not None
    table: dict[str, Any] = dict(result.metrics)
    assert table["fp32"]["accuracy"] > 80
    assert table["student"]["parameters"] == 100 * 16 + 2 * 16 + 2
    with np.load(result.out / "evaluate" / "logits.npz") as logits:
        assert np.abs(logits["eval/fp32"] - logits["eval/merged"]).max() < 1e-3
    assert load_manifest(result.artifact).lineage.student == "mean of the finetuned teacher"
    assert "mean of the finetuned teacher" in (result.artifact / "README.md").read_text(encoding="utf-8")
    assert write_report(result.out).where.student == "mean of the finetuned teacher"
    pairs = [["w1 w9", "w4"], ["w2 w9 w30", "w4 w5"]]
    with live.running(result.artifact) as url:
        answer = httpx2.post(f"{url}/predict", json={"inputs": pairs}).raise_for_status().json()
    assert [labels[0]["label"] for labels in answer] == ["yes", "no"]


def test_what_needs_layers_is_refused_of_it_and_a_misspelt_name_is_not_looked_for(begun: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="without layers can have no adapters"):
        tiny_runs.compress(begun("mean", "student.method=lora"), until="data")
    with pytest.raises(InputError, match="did you mean mean"):
        begun("meam")
