"""Cuts a student out of a teacher: some of its layers, and of each of these some of the neurons of its feed-forward
part.

A cut student is a model of the teacher's own architecture with other numbers in its config, so that it opens, exports
and serves as any other. Attention heads are not cut, since the configs of most encoders cannot say it.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError
from kdc.pipeline.models.loading import load_config

# Of a model: for each layer (neurons,), how much each neuron matters; see `kdc.pipeline.training.neurons`.
Importance = Callable[[Any], Sequence[torch.Tensor]]

_WIDTH_FIELDS = ("intermediate_size", "hidden_dim")  # what configs call the number of a feed-forward part's neurons
_PREFIX = "layers:"
_EXAMPLES = "for example --student layers:0,1,2, layers:first-and-last, layers:every-second or layers:0,1,5,ffn=768"


@dataclass(frozen=True)
class Cut:
    """What a student keeps of its teacher."""

    layers: tuple[int, ...]  # numbers of the layers, from 0, in their order in the student
    ffn: int | None = None  # neurons of each layer's feed-forward part; None keeps all

    def __str__(self) -> str:
        """As `--student` takes it."""
        return _PREFIX + ",".join(map(str, self.layers)) + ("" if self.ffn is None else f",ffn={self.ffn}")


def parse_cut(text: str, config: PretrainedConfig) -> Cut:
    """What `layers:0,1,5`, `layers:first-and-last`, `layers:first-half` or `layers:every-second` mean for a teacher of
    this config, each maybe with `,ffn=768` at its end.

    Raises:
        InputError: these are not numbers, or none, or one is repeated or beyond the teacher's layers; or the width is
            no number from 1 to the teacher's.
    """
    names, sign, width = text.removeprefix(_PREFIX).partition(",ffn=")
    layers = _layers(names, int(getattr(config, "num_hidden_layers", 0)), text)
    if not sign:
        return Cut(layers)
    field = _width_field(config)
    whole = 0 if field is None else int(getattr(config, field))
    if not re.fullmatch(r"[0-9]{1,9}", width) or not 1 <= int(width) <= whole:
        raise InputError(
            f"no such width of the feed-forward parts, which have {whole} neurons"
            if whole
            else f"the feed-forward parts of a {config.model_type} cannot be made narrower",
            given=text,
            remedy=f"{_PREFIX}{names},ffn={max(1, whole // 2)}" if whole else "name the layers alone",
        )
    return Cut(layers, None if int(width) == whole else int(width))


def check_cut(text: str, teacher: str) -> None:
    """Refuse, before anything is trained, what cannot be cut out of a teacher.

    Raises:
        InputError: as `parse_cut`; or its feed-forward parts have another form than two linear layers.
    """
    config = load_config(teacher)
    if parse_cut(text, config).ffn is not None:
        _check_form(config)


def half_width(teacher: str) -> int | None:
    """Half of the neurons of a teacher's feed-forward parts; None where these cannot be made narrower."""
    config = load_config(teacher)
    field = _width_field(config)
    if field is None:
        return None
    try:
        _check_form(config)
    except InputError:
        return None
    return max(1, int(getattr(config, field)) // 2)


def _check_form(config: PretrainedConfig) -> None:
    """Raise as `feed_forwards`, by the config alone: no weights are read or made."""
    with torch.device("meta"):
        feed_forwards(AutoModelForSequenceClassification.from_config(config))


def first_and_last(depth: int, total: int) -> tuple[int, ...]:
    """Numbers of `depth` layers out of `total`: the first ones, and the last one, whose states the head knows how to
    read."""
    return (*range(depth - 1), total - 1)


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


def feed_forwards(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear]]:
    """The two linear layers of each layer's feed-forward part: the one whose outputs are the neurons, and the one that
    reads them.

    Raises:
        InputError: there are no such two in each layer, as where neurons are gated.
    """
    field = _width_field(model.config)
    width = None if field is None else getattr(model.config, field)
    pairs = []
    for layer in encoder_layers(model)[1]:
        linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        up, down = ([each for each in linear if getattr(each, end) == width] for end in ("out_features", "in_features"))
        if len(up) != 1 or len(down) != 1:
            raise InputError(
                "the feed-forward parts of this model cannot be made narrower",
                given=f"{type(model).__name__}: {len(up)} and {len(down)} linear layers of {width} neurons in a layer",
                remedy="name the layers alone, without ffn=",
            )
        pairs.append((up[0], down[0]))
    return pairs


def cut(model: PreTrainedModel, wanted: Cut, importance: Importance | None = None) -> PreTrainedModel:
    """A copy of the model with these layers, in this order, and of their feed-forward parts the neurons that matter
    most; all other weights are the same.

    Args:
        model: a classifier.
        wanted: what to keep.
        importance: tells how much the neurons of the copy, which has its layers by then, matter; None keeps the first
            ones, for what is only measured.
    """
    small = copy.deepcopy(model)
    name, stack = encoder_layers(small)
    parent = small.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.ModuleList([stack[layer] for layer in wanted.layers]))
    small.config.num_hidden_layers = len(wanted.layers)
    if wanted.ffn is not None:
        pairs = feed_forwards(small)
        matter = [-torch.arange(up.out_features) for up, _ in pairs] if importance is None else importance(small)
        for (up, down), each in zip(pairs, matter, strict=True):
            _keep(up, down, each.topk(wanted.ffn).indices.sort().values)
        setattr(small.config, str(_width_field(small.config)), wanted.ffn)
    return small


def _keep(up: nn.Linear, down: nn.Linear, neurons: torch.Tensor) -> None:
    """Leave these neurons between two linear layers, in place."""
    up.weight = nn.Parameter(up.weight.detach()[neurons])
    if up.bias is not None:
        up.bias = nn.Parameter(up.bias.detach()[neurons])
    down.weight = nn.Parameter(down.weight.detach()[:, neurons])
    up.out_features = down.in_features = len(neurons)


def _layers(names: str, total: int, text: str) -> tuple[int, ...]:
    """Layer numbers by their names, see `parse_cut`; `text` is what was given."""
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


def _width_field(config: PretrainedConfig) -> str | None:
    return next((name for name in _WIDTH_FIELDS if isinstance(getattr(config, name, None), int)), None)
