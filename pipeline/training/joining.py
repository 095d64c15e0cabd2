"""`kdc.serving.engine.long_texts` in torch.

`kdc_join` in the config names one way for each output, or one for all; default: mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdc.artifact.manifest import Join
from kdc.artifact.task_kinds import KINDS, Kind
from kdc.serving.engine import long_texts
from kdc.serving.engine.long_texts import HOPELESS, SURE

_AT_ONCE = 64  # windows in one gradient-free pass
_NOT_INPUTS = ("labels", "labelled", "teacher_logits", "windows")
_EXCLUSIVE = {kind.problem_type: kind.is_exclusive for kind in KINDS.values()}


def join_of(config: Any) -> tuple[Join, ...]:
    return tuple(getattr(config, "kdc_join", None) or ("mean",))


def set_join(model: Any, join: tuple[Join, ...] | None) -> None:
    """Write the way into the config; None if long rows are cut."""
    if join is not None:
        model.config.kdc_join = list(join)
    elif hasattr(model.config, "kdc_join"):
        del model.config.kdc_join


def parts_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (windows, outputs)."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name not in _NOT_INPUTS}
    count = len(inputs["input_ids"])
    if count <= _AT_ONCE or torch.is_grad_enabled():
        return model(**inputs).logits.float()
    turns = (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))
    return torch.cat([model(**{name: value[turn] for name, value in inputs.items()}).logits.float() for turn in turns])


def logits_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (rows, outputs)."""
    parts = parts_of(model, batch)
    return joined(parts, batch["windows"], model.config) if "windows" in batch else parts


def joined(parts: Tensor, counts: Tensor, config: Any) -> Tensor:
    """Join logits (windows, outputs) into (rows, outputs); `counts` (rows,) has each row's windows."""
    join, is_exclusive = join_of(config), _EXCLUSIVE[config.problem_type]
    rows = parts.split(counts.tolist())
    return torch.stack([part[0] if len(part) == 1 else _joined(part, join, is_exclusive) for part in rows])


def _joined(part: Tensor, join: Sequence[Join], is_exclusive: bool) -> Tensor:
    if is_exclusive:
        part = F.log_softmax(part, dim=1)
    if len(join) == 1:
        return _way(part, join[0], is_exclusive)
    answers = {way: _way(part, way, is_exclusive) for way in set(join)}
    return torch.stack([answers[way][output] for output, way in enumerate(join)])


def _way(part: Tensor, way: Join, is_exclusive: bool) -> Tensor:
    if way == "noisy-or":
        if is_exclusive:
            none = torch.log1p(-part.clamp(min=HOPELESS).exp().clamp(max=SURE)).sum(0)
        else:
            none = -F.softplus(part.clamp(min=HOPELESS)).sum(0)
        return torch.log(-torch.expm1(none)) - none
    return part[0] if way == "first" else part.amax(0) if way == "max" else part.mean(0)


def best_join(
    parts: NDArray[np.float32], counts: Sequence[int], labels: NDArray[np.generic], kind: Kind
) -> tuple[Join, ...]:
    """The ways with the least label loss: one for each output if multi-label, else one for all.

    Args:
        parts: (windows, outputs) logits.
        labels: class ids, multi-hot rows, or standardised numbers.
    """
    from kdc.pipeline.training.losses import LOSSES

    ways: tuple[Join, ...] = ("mean", "max", "first") + (("noisy-or",) if KINDS[kind].has_labels else ())
    truth, losses = torch.from_numpy(np.asarray(labels)), []
    for way in ways:
        answers = torch.from_numpy(long_texts.joined(parts, counts, (way,), kind))
        losses.append(LOSSES[kind].of_labels(answers, truth).mean(0))
    return tuple(ways[best] for best in torch.stack(losses).argmin(0).tolist())
