"""Which neurons of a model's feed-forward parts matter: how much its answers would change without each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kdc.pipeline.models.cutting import feed_forwards
from kdc.pipeline.training.batches import Collator, Rows

_ROWS = 512
_BATCH_SIZE = 32
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def neuron_importance(model: Any, rows: Rows, *, pad_id: int, device: str) -> list[torch.Tensor]:
    """How much the logits would change if a neuron were taken out, to first order: for each layer (neurons,), the
    absolute change summed over some rows.

    The change is the neuron's activation times the gradient of the logits by it, summed over the tokens of a row: the
    criterion of Molchanov et al. 2017 (arXiv 1611.06440), which they take of the loss. A copy of the teacher has no
    loss against its own answers, so it is of the logits here, less their mean, which a softmax does not see, and each
    with a random sign, so that one pass tells of all of them.

    Args:
        model: a classifier; it is put into evaluation mode, and is on the CPU afterwards.
        rows: the first ones are taken.
        pad_id: the tokenizer's padding id.
        device: where to compute.
    """
    model.eval().to(device)
    collate, signs = Collator(pad_id), torch.Generator().manual_seed(0)
    totals = [torch.zeros(down.in_features) for _, down in feed_forwards(model)]
    with _activations(model) as activations:
        for start in range(0, min(_ROWS, len(rows)), _BATCH_SIZE):
            batch = collate(rows.__getitems__(list(range(start, min(start + _BATCH_SIZE, _ROWS, len(rows))))))
            inputs = {name: batch[name].to(device) for name in _INPUTS if name in batch}
            logits = model(**inputs).logits.float()
            if logits.shape[1] > 1:
                logits = logits - logits.mean(1, keepdim=True)
            sign = 2 * torch.randint(0, 2, logits.shape, generator=signs).to(device) - 1
            gradients = torch.autograd.grad((sign * logits).sum(), activations)
            for total, activation, gradient in zip(totals, activations, gradients, strict=True):
                total += (activation * gradient).detach().sum(1).abs().sum(0).float().cpu()
    model.to("cpu")
    return totals


@contextmanager
def _activations(model: Any) -> Iterator[list[torch.Tensor]]:
    """A list that holds, after each forward pass, what the neurons of each layer gave: (rows, tokens, neurons)."""
    found: list[torch.Tensor] = []
    pairs = feed_forwards(model)

    def note(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(found) == len(pairs):
            found.clear()
        found.append(inputs[0])

    hooks = [down.register_forward_pre_hook(note) for _, down in pairs]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
