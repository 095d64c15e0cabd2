"""Folds the calibration temperature into a classifier."""

from typing import Any

import numpy as np
from torch import nn

from kdc.artifact.task_kinds import KINDS, Kind
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.quality.calibration import calibrate
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.joining import join_of
from kdc.pipeline.training.predict import predict
from kdc.pipeline.training.students import probe_rows
from kdc.serving.engine.engine import activate

_TOLERANCE = 1e-4  # of probabilities


def fold_temperature(model: Any, data: PreparedData, role: str, *, pad_id: int, device: str) -> float | None:
    """Divide the last layer by the temperature that suits the tuning set.

    Returns:
        The temperature; 1.0 if none helps. None if that would not divide a row's logits: the layer is unchanged.
    """
    kind = data.task.kind
    layers = [
        part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == data.task.outputs
    ]
    if not layers or not _scales(join_of(model.config), kind):
        return None
    logits = predict(model.to(device), Rows([data.tokens(role, "tune")]), pad_id=pad_id)
    labels = np.asarray(data.rows("tune")["label"][:])
    temperature = calibrate(logits, labels, kind, groups=data.groups("tune"))
    trained = dict(layers[-1].named_parameters())
    _set(layers[-1], {name: nn.Parameter(value.detach() / temperature) for name, value in trained.items()})
    folded = predict(model, probe_rows(data, role), pad_id=pad_id)
    difference = np.abs(activate(folded, kind) - activate(logits[: len(folded)], kind, temperature)).max()
    if not difference <= _TOLERANCE:
        _set(layers[-1], trained)
    model.to("cpu")
    return temperature if difference <= _TOLERANCE else None


def _set(layer: nn.Linear, parameters: dict[str, nn.Parameter]) -> None:
    for name, value in parameters.items():
        setattr(layer, name, value)


def _scales(join: tuple[str, ...], kind: Kind) -> bool:
    """Whether dividing the windows' logits divides the row's. By "max" of class log-probabilities it does not."""
    traits = KINDS[kind]
    return traits.has_labels and {"mean", "first"}.union(() if traits.is_exclusive else {"max"}).issuperset(join)
