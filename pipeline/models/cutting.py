"""Cut a student out of a teacher: fewer layers, neurons or attention heads."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError
from kdc.pipeline.models.units import (
    HEADS_FIELD,
    Importance,
    Part,
    attentions,
    encoder_layers,
    feed_forwards,
    heads_of,
    keep,
    neurons_field,
    neurons_of,
)

_PREFIX = "layers:"
_LISTS = ("layer", "attention_window")
_EXAMPLES = (
    "for example --student layers:0,1,2, layers:first-and-last, layers:every-second or layers:0,1,5,ffn=768,heads=6"
)


@dataclass(frozen=True)
class Cut:
    layers: tuple[int, ...]  # from 0, in order
    ffn: int | None = None  # per layer; None: all
    heads: int | None = None  # per layer; None: all

    def __str__(self) -> str:
        """The `--student` spec."""
        widths = [f",{name}={count}" for name, count in (("ffn", self.ffn), ("heads", self.heads)) if count is not None]
        return _PREFIX + ",".join(map(str, self.layers)) + "".join(widths)

    @property
    def is_narrow(self) -> bool:
        return self.ffn is not None or self.heads is not None


def parse_cut(text: str, config: PretrainedConfig) -> Cut:
    """Parse `layers:0,1,5`, `layers:first-and-last`, `layers:first-half` or `layers:every-second`.

    `,ffn=768` and `,heads=6` may follow.

    Raises:
        InputError: wrong or repeated layers, or too large counts.
    """
    names, *widths = re.split(",(?=ffn=|heads=)", text.removeprefix(_PREFIX).replace(" ", ""))
    layers = _layers(names, int(getattr(config, "num_hidden_layers", 0)), text)
    counts: dict[str, int | None] = {}
    for width in widths:
        name, _, count = width.partition("=")
        whole = neurons_of(config) if name == "ffn" else heads_of(config)
        if name in counts or not re.fullmatch(r"[0-9]{1,9}", count) or not 1 <= int(count) <= whole:
            problem = f"{name}= comes once, after the layers, with a number from 1 to this teacher's {whole}"
            raise InputError(problem, given=text, remedy=_EXAMPLES)
        counts[name] = None if int(count) == whole else int(count)
    return Cut(layers, **counts)


def first_and_last(depth: int, total: int) -> tuple[int, ...]:
    """The head reads the last layer's states."""
    return (*range(depth - 1), total - 1)


def cut(model: PreTrainedModel, wanted: Cut, importance: Importance) -> PreTrainedModel:
    """A copy with these layers, and the units that `importance` scores highest in it."""
    small = copy.deepcopy(model)
    name, stack = encoder_layers(small)
    parent = small.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.ModuleList([stack[layer] for layer in wanted.layers]))
    keep_layers(small.config, wanted.layers)
    narrower: list[tuple[Part, int]] = []
    if wanted.ffn is not None:
        narrower += [(part, wanted.ffn) for part in feed_forwards(small)]
        setattr(small.config, str(neurons_field(small.config)), wanted.ffn)
    if wanted.heads is not None:
        narrower += [(part, wanted.heads) for part in attentions(small)]
        setattr(small.config, HEADS_FIELD, wanted.heads)
    if narrower:
        for (part, count), units in zip(narrower, importance(small, [part for part, _ in narrower]), strict=True):
            keep(part, units.topk(count).indices.sort().values)
    return small


def keep_layers(config: PretrainedConfig, layers: Sequence[int]) -> None:
    whole = config.num_hidden_layers
    for name, listed in config.to_dict().items():
        if any(part in name for part in _LISTS) and isinstance(listed, (list, tuple)) and len(listed) == whole:
            setattr(config, name, [listed[layer] for layer in layers])
    config.num_hidden_layers = len(layers)


def _layers(names: str, total: int, text: str) -> tuple[int, ...]:
    half = max(1, total // 2)
    if names == "first-and-last":
        return first_and_last(half, total)
    if names == "first-half":
        return tuple(range(half))
    if names == "every-second":
        return tuple(range(1, total, 2)) or (0,)
    try:
        layers = [int(part) for part in names.split(",")]
    except ValueError:
        layers = []
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < total for layer in layers):
        raise InputError(f"no such layers in a model with {total}", given=text, remedy=_EXAMPLES)
    return tuple(layers)
