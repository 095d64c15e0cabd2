"""The units that a layer can do without: the neurons of its feed-forward part, and the heads of its attention.

Configs have a field for the number of neurons. Their field for the number of heads will not do: most architectures
divide the hidden size by it, to find how wide a head is. So a model with fewer heads of the same width has a field of
our own in its config, `kdc_heads`, and `opening.py` opens it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError

HEADS_FIELD = "kdc_heads"
WIDTH_FIELDS = ("intermediate_size", "hidden_dim")  # what configs call the number of a feed-forward part's neurons
# What attention modules call the number of their heads, and the width of all heads together.
_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_WIDTHS = ("all_head_size", "embed_dim", "dim")
_NOT_NARROWED = "name the layers alone, without ffn= and heads="


@dataclass(frozen=True)
class Part:
    """One layer's feed-forward part or attention, as units between linear layers."""

    makers: tuple[nn.Linear, ...]  # their outputs are the units: of one layer, or of queries, keys and values
    reader: nn.Linear  # its inputs are what the units give
    width: int  # how many neighbouring numbers are of one unit: 1 for a neuron
    counts: nn.Module | None = None  # the module that says how many heads there are

    @property
    def units(self) -> int:
        """The number of neurons or heads."""
        return self.reader.in_features // self.width


# A model and some of its parts -> for each part (units,), how much each unit matters: by
# `kdc.pipeline.training.importance`, or by `first_units` for a model that is only measured.
Importance = Callable[[Any, Sequence[Part]], Sequence[torch.Tensor]]


def encoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The dotted name of the stack of the encoder's layers, and the stack.

    Raises:
        InputError: there is none: its layers share their weights (ALBERT), or it is no encoder.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    remedy = "name a student with its own checkpoint: --student PATH_OR_ID"
    raise InputError("cannot find the encoder's layers", given=type(model).__name__, remedy=remedy)


def feed_forwards(model: PreTrainedModel) -> list[Part]:
    """The feed-forward part of each layer, whose units are neurons.

    Raises:
        InputError: they are not two linear layers each, as if neurons are gated.
    """
    width = neurons_of(model.config)
    parts = []
    for layer in encoder_layers(model)[1]:
        others = [linear for part in _attentions(layer) for linear in (*part.makers, part.reader)]
        own = [module for module in layer.modules() if isinstance(module, nn.Linear) and module not in others]
        up = [linear for linear in own if linear.out_features == width]
        down = [linear for linear in own if linear.in_features == width]
        if up == down and len(up) == 2:  # as many neurons as a token vector has numbers
            up, down = up[:1], up[1:]
        if len(up) != 1 or len(down) != 1:
            raise InputError(
                "the feed-forward parts of this model cannot be made narrower",
                given=f"{type(model).__name__}: {len(up)} and {len(down)} linear layers of {width} neurons in a layer",
                remedy=_NOT_NARROWED,
            )
        parts.append(Part((up[0],), down[0], 1))
    return parts


def attentions(model: PreTrainedModel) -> list[Part]:
    """The attention of each layer, whose units are heads.

    Raises:
        InputError: it is not three linear layers for queries, keys and values, and one that reads what comes of them.
    """
    parts = []
    for layer in encoder_layers(model)[1]:
        of_layer = _attentions(layer)
        if len(of_layer) != 1:
            raise InputError(
                "the attention of this model cannot be made narrower",
                given=f"{type(model).__name__}: {len(of_layer)} modules with a query, a key and a value in a layer",
                remedy=_NOT_NARROWED,
            )
        parts += of_layer
    return parts


def _attentions(layer: nn.Module) -> list[Part]:
    return [part for module in layer.modules() if (part := _attention(layer, module)) is not None]


def _attention(layer: nn.Module, module: nn.Module) -> Part | None:
    """The attention whose queries, keys and values this module of the layer makes; None if it makes none. Its reader is
    the first linear layer of that shape: a feed-forward part as wide as that comes later."""
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
    """An `Importance` that keeps the first units."""
    return [-torch.arange(part.units, device="cpu") for part in parts]


def keep(part: Part, units: torch.Tensor) -> None:
    """Keep only these units of a part, in place and in this order."""
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
    """Give a model that was just made of its config as many heads in each layer as `kdc_heads` says, in place.

    Raises:
        ValueError: there are not so many.
        InputError: as `attentions`.
    """
    heads = getattr(model.config, HEADS_FIELD, None)
    if heads is None:
        return model
    for part in attentions(model):
        if type(heads) is not int or not 1 <= heads <= part.units:  # JSON's true is an int too
            raise ValueError(f"its config.json has {HEADS_FIELD}={heads!r}, and its layers have {part.units} heads")
        keep(part, torch.arange(heads, device="cpu"))
    return model


def class_with_its_heads(config: PretrainedConfig, auto: Any, classes: Any) -> Any:
    """The class whose `from_pretrained` opens a model of this config: `auto`, or the architecture's own of `classes` if
    layers have fewer heads, which it has before the weights are read."""
    if getattr(config, HEADS_FIELD, None) is None:
        return auto
    whole: Any = classes[type(config)]

    def make(self: Any, config: PretrainedConfig, *given: Any, **named: Any) -> None:
        whole.__init__(self, config, *given, **named)
        with_its_heads(self)

    return type(whole.__name__, (whole,), {"__init__": make, "__module__": whole.__module__})


def heads_of(config: PretrainedConfig) -> int:
    """The number of heads in each layer; 0 if the config does not say."""
    heads = getattr(config, HEADS_FIELD, None) or getattr(config, "num_attention_heads", None)
    return heads if isinstance(heads, int) else 0


def neurons_field(config: PretrainedConfig) -> str | None:
    """The config's field for the number of neurons; None if it has none."""
    return next((name for name in WIDTH_FIELDS if isinstance(getattr(config, name, None), int)), None)


def neurons_of(config: PretrainedConfig) -> int:
    """The number of neurons in each layer's feed-forward part; 0 if the config does not say."""
    field = neurons_field(config)
    return 0 if field is None else int(getattr(config, field))
