"""Removes a layer's units: feed-forward neurons and attention heads.

Most architectures divide the hidden size by the config's number of heads, which must stay. `kdc_heads` has the number
that is left; only `opening.py` opens such a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError

HEADS_FIELD = "kdc_heads"
WIDTH_FIELDS = ("intermediate_size", "hidden_dim")  # feed-forward neurons
# Attention modules' attributes.
_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_WIDTHS = ("all_head_size", "embed_dim", "dim")


@dataclass(frozen=True)
class Part:
    """One layer's feed-forward part or attention."""

    makers: tuple[nn.Linear, ...]  # outputs are units; attention has three
    reader: nn.Linear  # inputs are units
    width: int  # per unit; 1 for neurons
    counts: nn.Module | None = None  # has `_COUNTS` and `_WIDTHS`

    @property
    def units(self) -> int:
        return self.reader.in_features // self.width


# (model, parts) -> importance (units,) of each part's units.
Importance = Callable[[Any, Sequence[Part]], Sequence[torch.Tensor]]


def encoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and stack of the layers.

    Raises:
        InputError: layers share weights (ALBERT), or it is no encoder.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    remedy = "name a student with its own checkpoint: --student PATH_OR_ID"
    raise InputError("cannot find the encoder's layers", given=type(model).__name__, remedy=remedy)


def feed_forwards(model: PreTrainedModel) -> list[Part]:
    """One part per layer; raise InputError unless it is two linear layers."""
    width = neurons_of(model.config)
    parts = []
    for layer in encoder_layers(model)[1]:
        others = [linear for part in _attentions(layer) for linear in (*part.makers, part.reader)]
        own = [module for module in layer.modules() if isinstance(module, nn.Linear) and module not in others]
        up = [linear for linear in own if linear.out_features == width]
        down = [linear for linear in own if linear.in_features == width]
        if up == down and len(up) == 2:  # neurons equal the hidden size
            up, down = up[:1], up[1:]
        if len(up) != 1 or len(down) != 1:
            raise _as_wide_as_they_are("feed-forward parts", model)
        parts.append(Part((up[0],), down[0], 1))
    return parts


def attentions(model: PreTrainedModel) -> list[Part]:
    """One part per layer; raise InputError if queries, keys, values or reader are not linear."""
    parts = []
    for layer in encoder_layers(model)[1]:
        of_layer = _attentions(layer)
        if len(of_layer) != 1:
            raise _as_wide_as_they_are("attentions", model)
        parts += of_layer
    return parts


def _as_wide_as_they_are(parts: str, model: PreTrainedModel) -> InputError:
    remedy = "name the layers alone, without ffn= and heads="
    return InputError(f"the {parts} of this model cannot be made narrower", given=type(model).__name__, remedy=remedy)


def _attentions(layer: nn.Module) -> list[Part]:
    return [part for module in layer.modules() if (part := _attention(layer, module)) is not None]


def _attention(layer: nn.Module, module: nn.Module) -> Part | None:
    """The reader is the first layer of its shape: feed-forward parts come later."""
    linear = [(name, child) for name, child in module.named_children() if isinstance(child, nn.Linear)]
    makers = tuple(child for letter in "qkv" for name, child in linear if name.startswith(letter))
    heads = next((count for name in _COUNTS if isinstance(count := getattr(module, name, None), int)), 0)
    widths = {maker.out_features for maker in makers}
    if len(makers) != len("qkv") or len(widths) != 1 or not heads or (inner := widths.pop()) % heads:
        return None
    others = [other for other in layer.modules() if isinstance(other, nn.Linear) and other not in makers]
    shape = (inner, makers[0].in_features)
    reader = next((other for other in others if (other.in_features, other.out_features) == shape), None)
    return None if reader is None else Part(makers, reader, inner // heads, module)


def first_units(_: Any, parts: Sequence[Part]) -> list[torch.Tensor]:
    """The importance for models whose weights do not matter."""
    return [-torch.arange(part.units, device="cpu") for part in parts]


def keep(part: Part, units: torch.Tensor) -> None:
    numbers = (units[:, None] * part.width + torch.arange(part.width, device=units.device)).flatten()
    for maker in part.makers:
        maker.weight = nn.Parameter(maker.weight.detach()[numbers])
        if maker.bias is not None:
            maker.bias = nn.Parameter(maker.bias.detach()[numbers])
        maker.out_features = len(numbers)
    part.reader.weight = nn.Parameter(part.reader.weight.detach()[:, numbers])
    part.reader.in_features = len(numbers)
    for names, count in ((_COUNTS, len(units)), (_WIDTHS, len(numbers))):
        for name in names if part.counts is not None else ():
            if isinstance(getattr(part.counts, name, None), int):
                setattr(part.counts, name, count)


def with_its_heads(model: Any) -> Any:
    """Reduce a new model to its config's `kdc_heads`.

    Raises:
        ValueError: its layers have fewer.
        InputError: as `attentions`.
    """
    heads = getattr(model.config, HEADS_FIELD, None)
    if heads is None:
        return model
    for part in attentions(model):
        if type(heads) is not int or not 1 <= heads <= part.units:  # true is an int
            raise ValueError(f"its config.json has {HEADS_FIELD}={heads!r}, and its layers have {part.units} heads")
        keep(part, torch.arange(heads, device="cpu"))
    return model


def class_with_its_heads(config: PretrainedConfig, auto: Any, classes: Any) -> Any:
    """With fewer heads, the config's class narrows before weights load."""
    if getattr(config, HEADS_FIELD, None) is None:
        return auto
    whole: Any = classes[type(config)]

    def make(self: Any, config: PretrainedConfig, *given: Any, **named: Any) -> None:
        whole.__init__(self, config, *given, **named)
        with_its_heads(self)

    return type(whole.__name__, (whole,), {"__init__": make, "__module__": whole.__module__})


def heads_of(config: PretrainedConfig) -> int:
    """Heads per layer; 0 if unknown."""
    heads = getattr(config, HEADS_FIELD, None) or getattr(config, "num_attention_heads", None)
    return heads if isinstance(heads, int) else 0


def neurons_field(config: PretrainedConfig) -> str | None:
    return next((name for name in WIDTH_FIELDS if isinstance(getattr(config, name, None), int)), None)


def neurons_of(config: PretrainedConfig) -> int:
    """Neurons per layer; 0 if unknown."""
    field = neurons_field(config)
    return 0 if field is None else int(getattr(config, field))
