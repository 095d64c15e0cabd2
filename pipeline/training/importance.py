"""Importance of neurons and attention heads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from kdc.pipeline.models.units import Part
from kdc.pipeline.training.batches import Collator, Rows
from kdc.pipeline.training.joining import parts_of

_ROWS = 512


def unit_importance(
    model: Any,
    parts: Sequence[Part],
    rows: Rows,
    *,
    pad_id: int,
    device: str = "cpu",
    batch_size: int = 32,
    seed: int = 0,
) -> list[torch.Tensor]:
    """First-order absolute change of the logits without each unit, summed over rows: (units,) for each part.

    It is a unit's output times the gradient of the logits, summed over its width and a row's tokens. See Molchanov et
    al. 2017, arXiv 1611.06440, and for heads Michel et al. 2019, arXiv 1905.10650; they use the loss. A random mixture
    of logits covers all classes in one pass.

    The model ends in evaluation mode on the CPU.
    """
    model.eval().to(device)
    collate, mixtures = Collator(pad_id), torch.Generator().manual_seed(seed)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:_ROWS]
    chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
    totals = [torch.zeros(part.units) for part in parts]
    with _activations(parts) as activations:
        for start in range(0, len(chosen), batch_size):
            for pieces in activations:
                pieces.clear()
            batch = collate(rows.__getitems__(chosen[start : start + batch_size].tolist()))
            logits = parts_of(model, batch)
            mixed = _mixed(logits, mixtures, one_label=model.config.problem_type != "multi_label_classification")
            gradients = iter(torch.autograd.grad(mixed.sum(), [piece for pieces in activations for piece in pieces]))
            for total, part, pieces in zip(totals, parts, activations, strict=True):
                changes = torch.stack([(piece.detach() * next(gradients)).sum(1) for piece in pieces]).sum(0)
                total += changes.unflatten(1, (part.units, part.width)).sum(2).abs().sum(0).float().cpu()
    model.to("cpu")
    return totals


def _mixed(logits: torch.Tensor, mixtures: torch.Generator, *, one_label: bool) -> torch.Tensor:
    outputs = logits.shape[1]
    if outputs == 1:
        return logits[:, 0]
    if one_label and outputs == 2:
        return logits[:, 1] - logits[:, 0]
    mixture = torch.randn(logits.shape, generator=mixtures).to(logits.device)
    if one_label:
        mixture = mixture - mixture.mean(1, keepdim=True)
    return (mixture * logits).sum(1)


@contextmanager
def _activations(parts: Sequence[Part]) -> Iterator[list[list[torch.Tensor]]]:
    """Each part's (rows, tokens, units * width), in pieces if the model splits tokens."""
    activations: list[list[torch.Tensor]] = [[] for _ in parts]

    def note(pieces: list[torch.Tensor], _: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (units,) = inputs
        pieces.append(units if units.requires_grad else units.detach().requires_grad_())
        return (pieces[-1],)

    hooks = [
        part.reader.register_forward_pre_hook(partial(note, pieces))
        for part, pieces in zip(parts, activations, strict=True)
    ]
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()
