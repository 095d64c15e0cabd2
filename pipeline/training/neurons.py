"""Which neurons of a model's feed-forward parts matter: how much its answers would change without each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from kdc.pipeline.models.cutting import feed_forwards
from kdc.pipeline.training.batches import Collator, Rows
from kdc.pipeline.training.joining import parts_of

_ROWS = 512


def neuron_importance(
    model: Any, rows: Rows, *, pad_id: int, device: str = "cpu", batch_size: int = 32, seed: int = 0
) -> list[torch.Tensor]:
    """How much the logits would change if a neuron were taken out, to first order: for each layer (neurons,), the
    absolute change summed over some rows.

    The change is the neuron's activation times the gradient of the logits by it, summed over the tokens of a row: the
    criterion of Molchanov et al. 2017 (arXiv 1611.06440), which they take of the loss. A copy of the teacher has no
    loss against its own answers, so it is of the logits here. Of several classes one pass tells of all, by a random
    mixture of their logits for each row; what is added to all of them alike counts for nothing, as in a softmax.

    Args:
        model: a classifier; it is put into evaluation mode, and is on the CPU afterwards.
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
    totals = [torch.zeros(down.in_features) for _, down in feed_forwards(model)]
    with _activations(model) as activations:
        for start in range(0, len(chosen), batch_size):
            for parts in activations:
                parts.clear()
            batch = collate(rows.__getitems__(chosen[start : start + batch_size].tolist()))
            logits = parts_of(model, batch)
            told = _mixed(logits, mixtures, one_label=model.config.problem_type != "multi_label_classification")
            gradients = iter(torch.autograd.grad(told.sum(), [each for parts in activations for each in parts]))
            for total, parts in zip(totals, activations, strict=True):
                changes = torch.stack([(each.detach() * next(gradients)).sum(1) for each in parts]).sum(0)
                total += changes.abs().sum(0).float().cpu()
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
def _activations(model: Any) -> Iterator[list[list[torch.Tensor]]]:
    """For each layer what its neurons gave in a forward pass, (rows, tokens, neurons), in parts where the model goes
    through the tokens in parts. The weights have no gradients meanwhile, so that little is kept for them."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found: list[list[torch.Tensor]] = []
    hooks = []

    def note(parts: list[torch.Tensor]) -> Any:
        def before(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            (given,) = inputs
            parts.append(given if given.requires_grad else given.detach().requires_grad_())
            return (parts[-1],)

        return before

    for weight in trained:
        weight.requires_grad_(False)
    for _, down in feed_forwards(model):
        found.append([])
        hooks.append(down.register_forward_pre_hook(note(found[-1])))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.requires_grad_(True)
