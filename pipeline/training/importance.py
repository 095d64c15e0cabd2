"""Which neurons and heads of a model matter: how much its answers would change without each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    """How much the logits would change if a neuron or a head were taken out, to first order: for each part (units,),
    the absolute change summed over some rows.

    The change is what the unit gives times the gradient of the logits by it, summed over the unit's numbers and the
    tokens of a row: the criterion of Molchanov et al. 2017 (arXiv 1611.06440), and for heads of Michel et al. 2019
    (arXiv 1905.10650), who take it of the loss. A copy of the teacher has no loss against its own answers, so it is of
    the logits here. Of several classes one pass tells of all, by a random mixture of their logits for each row; what is
    added to all of them alike counts for nothing, as in a softmax.

    Args:
        model: a classifier; it is put into evaluation mode, and is on the CPU afterwards.
        parts: of the model's layers.
        rows: at most 512 of them are taken, at random; each window of a long one counts like a row.
        pad_id: the tokenizer's padding id.
        device: where to compute.
        batch_size: rows at a time.
        seed: of the rows and of the mixtures.
    """
    model.eval().to(device)
    collate, mixtures = Collator(pad_id), torch.Generator().manual_seed(seed)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:_ROWS]
    chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
    totals = [torch.zeros(part.units) for part in parts]
    with _activations(model, parts) as activations:
        for start in range(0, len(chosen), batch_size):
            for pieces in activations:
                pieces.clear()
            batch = collate(rows.__getitems__(chosen[start : start + batch_size].tolist()))
            logits = parts_of(model, batch)
            told = _mixed(logits, mixtures, one_label=model.config.problem_type != "multi_label_classification")
            gradients = iter(torch.autograd.grad(told.sum(), [each for pieces in activations for each in pieces]))
            for total, part, pieces in zip(totals, parts, activations, strict=True):
                changes = torch.stack([(each.detach() * next(gradients)).sum(1) for each in pieces]).sum(0)
                total += changes.unflatten(1, (part.units, part.width)).sum(2).abs().sum(0).float().cpu()
    model.to("cpu")
    return totals


def _mixed(logits: torch.Tensor, mixtures: torch.Generator, *, one_label: bool) -> torch.Tensor:
    """One number for each row, (rows,), of logits (rows, outputs)."""
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
def _activations(model: Any, parts: Sequence[Part]) -> Iterator[list[list[torch.Tensor]]]:
    """For each part what its units gave in a forward pass, (rows, tokens, units * width), in pieces where the model
    goes through the tokens in pieces. The weights have no gradients meanwhile, so that little is kept for them."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found: list[list[torch.Tensor]] = []
    hooks = []

    def note(pieces: list[torch.Tensor]) -> Any:
        def before(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            (given,) = inputs
            pieces.append(given if given.requires_grad else given.detach().requires_grad_())
            return (pieces[-1],)

        return before

    for weight in trained:
        weight.requires_grad_(False)
    for part in parts:
        found.append([])
        hooks.append(part.reader.register_forward_pre_hook(note(found[-1])))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.requires_grad_(True)
