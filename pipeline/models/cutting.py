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
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError
from kdc.pipeline.models.loading import load_config

# Of a model: for each layer (neurons,), how much each neuron matters; see `kdc.pipeline.training.neurons`, and
# `first_neurons` for what is only measured.
Importance = Callable[[Any], Sequence[torch.Tensor]]

_WIDTH_FIELDS = ("intermediate_size", "hidden_dim")  # what configs call the number of a feed-forward part's neurons
_PREFIX = "layers:"
# What architectures raise that are not made by their config alone, or not of these sizes.
_NOT_MADE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    InputError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
# What says nothing of what a layer does: its number, by which BigBird draws too, and a width, which the shapes show.
_NOT_OF_FORM = ("layer_idx", "layer_id", "seed", *_WIDTH_FIELDS)
_LISTS = ("layer", "attention_window")  # parts of the names of what configs list for each layer
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
    names, sign, width = text.removeprefix(_PREFIX).replace(" ", "").partition(",ffn=")
    if "heads=" in text:
        raise InputError("attention heads are not cut, only layers and neurons", given=text, remedy=_EXAMPLES)
    if "ffn" in names or "," in width:
        raise InputError("ffn= comes once, after the layers, with one number", given=text, remedy=_EXAMPLES)
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
        InputError: as `parse_cut`; or it has no stack of layers; or these layers would do something else in their new
            places, and the config cannot say it; or its feed-forward parts have another form than two linear layers.
    """
    config = load_config(teacher)
    wanted = parse_cut(text, config)
    if (whole := _without_weights(config)) is not None:
        encoder_layers(whole)
    if not can_be_cut(teacher, Cut(wanted.layers)):
        first = Cut(tuple(range(len(wanted.layers))))
        other = f"--student {first} keeps each in its place" if can_be_cut(teacher, first) else "another --student"
        newer = "" if hasattr(config, "layer_types") else "; transformers 5 can say it of more encoders than 4.57"
        raise InputError(
            "these layers would not be what they were once the student is opened again: what a layer of this teacher "
            "does depends on its place, and its config cannot say it otherwise",
            given=f"{text} of a {config.model_type}",
            remedy=f"{other}{newer}",
        )
    if wanted.ffn is not None and not _can_be_narrowed(config, wanted.ffn):
        raise InputError(
            "the feed-forward parts of this teacher cannot be made narrower: they are not two linear layers each, or "
            "its config cannot say it",
            given=f"{text} of a {config.model_type}",
            remedy="name the layers alone, without ffn=",
        )


def can_be_cut(teacher: str, wanted: Cut) -> bool:
    """Whether a student with these layers of a teacher opens as what it was cut as; True where that cannot be told
    without the teacher's weights."""
    return _opens_as_it_was_cut(load_config(teacher), wanted) is not False


def half_width(teacher: str) -> int | None:
    """Half of the neurons of a teacher's feed-forward parts; None where these cannot be made narrower."""
    config = load_config(teacher)
    field = _width_field(config)
    half = 0 if field is None else int(getattr(config, field)) // 2
    return half if half and _can_be_narrowed(config, half) else None


def _can_be_narrowed(config: PretrainedConfig, width: int) -> bool:
    """Whether all layers of a model of the config can have so many neurons."""
    return bool(_opens_as_it_was_cut(config, Cut(tuple(range(config.num_hidden_layers)), width)))


def _opens_as_it_was_cut(config: PretrainedConfig, wanted: Cut) -> bool | None:
    """Whether a model of the config, once cut, is the model of the config that the cut one has; None where no model can
    be made of the config alone."""
    whole = _without_weights(config)
    if whole is None:
        return None
    try:
        small = cut(whole, wanted, first_neurons)
        again = _without_weights(type(config).from_dict(small.config.to_dict()))  # as a file would be read
        return again is not None and _form(small) == _form(again)
    except _NOT_MADE:  # no stack of layers, neurons of another form, or a config that cannot be
        return False


def _without_weights(config: PretrainedConfig) -> PreTrainedModel | None:
    """The encoder of a config, whose weights have shapes and no numbers; None where it takes more than the config."""
    try:
        with torch.device("meta"):
            return AutoModel.from_config(config)
    except _NOT_MADE:
        return None


def _form(model: PreTrainedModel) -> dict[str, Any]:
    """The shapes of all weights, and what each module of a layer was told: numbers, names and switches, such as the
    width of its attention's window; but for the layers' own numbers."""
    form: dict[str, Any] = {name: each.shape for name, each in model.state_dict().items()}
    for place, module in encoder_layers(model)[1].named_modules():
        for name, told in vars(module).items():
            if isinstance(told, (int, float, str, tuple)) and not name.startswith("_") and name not in _NOT_OF_FORM:
                form[f"{place}:{name}"] = told
    return form


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


def first_neurons(model: PreTrainedModel) -> list[torch.Tensor]:
    """An importance by which the first neurons stay."""
    return [-torch.arange(up.out_features, device="cpu") for up, _ in feed_forwards(model)]


def cut(model: PreTrainedModel, wanted: Cut, importance: Importance) -> PreTrainedModel:
    """A copy of the model with these layers, in this order, and of their feed-forward parts the neurons that matter
    most; all other weights are the same.

    Args:
        model: a classifier.
        wanted: what to keep.
        importance: tells how much the neurons of the copy, which has its layers by then, matter.
    """
    small = copy.deepcopy(model)
    name, stack = encoder_layers(small)
    parent = small.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.ModuleList([stack[layer] for layer in wanted.layers]))
    _tell_of_layers(small.config, wanted.layers)
    if wanted.ffn is not None:
        for (up, down), each in zip(feed_forwards(small), importance(small), strict=True):
            _keep(up, down, each.topk(wanted.ffn).indices.sort().values)
        setattr(small.config, str(_width_field(small.config)), wanted.ffn)
    return small


def _tell_of_layers(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Change a config to one of these layers, in place. What it lists for each layer, such as the kinds of attention in
    `layer_types`, goes with the layer."""
    whole = config.num_hidden_layers
    for name, listed in config.to_dict().items():
        if any(part in name for part in _LISTS) and isinstance(listed, (list, tuple)) and len(listed) == whole:
            setattr(config, name, [listed[layer] for layer in layers])
    config.num_hidden_layers = len(layers)


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
