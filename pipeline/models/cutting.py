"""Cuts a student out of a teacher: some of its layers, and of each of these some of the neurons of its feed-forward
part and some of the heads of its attention.

A cut student is a model of the teacher's own architecture with other numbers in its config. It opens by `opening.py`,
exports and serves as any other; with all its heads any program opens it.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from kdc.common.errors import InputError
from kdc.pipeline.models.loading import load_config
from kdc.pipeline.models.units import (
    HEADS_FIELD,
    WIDTH_FIELDS,
    Importance,
    Part,
    attentions,
    encoder_layers,
    feed_forwards,
    first_units,
    heads_of,
    keep,
    neurons_field,
    neurons_of,
    with_its_heads,
)

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
_NOT_OF_FORM = ("layer_idx", "layer_id", "seed", *WIDTH_FIELDS)
_LISTS = ("layer", "attention_window")  # parts of the names of what configs list for each layer
_EXAMPLES = (
    "for example --student layers:0,1,2, layers:first-and-last, layers:every-second or layers:0,1,5,ffn=768,heads=6"
)
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


@dataclass(frozen=True)
class Cut:
    """What a student keeps of its teacher."""

    layers: tuple[int, ...]  # numbers of the layers, from 0, in their order in the student
    ffn: int | None = None  # neurons of each layer's feed-forward part; None keeps all
    heads: int | None = None  # heads of each layer's attention; None keeps all

    def __str__(self) -> str:
        """As `--student` takes it."""
        widths = [f",{name}={count}" for name, count in (("ffn", self.ffn), ("heads", self.heads)) if count is not None]
        return _PREFIX + ",".join(map(str, self.layers)) + "".join(widths)

    @property
    def is_narrow(self) -> bool:
        """Whether its layers have fewer neurons or heads than the teacher's."""
        return self.ffn is not None or self.heads is not None


def parse_cut(text: str, config: PretrainedConfig) -> Cut:
    """What `layers:0,1,5`, `layers:first-and-last`, `layers:first-half` or `layers:every-second` mean for a teacher of
    this config, each maybe with `,ffn=768` or `,heads=6` at its end, or both.

    Raises:
        InputError: these are not numbers, or none, or one is repeated or beyond the teacher's layers; or the neurons or
            heads are no number from 1 to the teacher's.
    """
    names, *widths = re.split(",(?=ffn=|heads=)", text.removeprefix(_PREFIX).replace(" ", ""))
    given = dict(width.split("=", 1) for width in widths)
    if len(given) < len(widths) or re.search("ffn|heads", names) or any("," in width for width in given.values()):
        raise InputError(
            "ffn= and heads= come once each, after the layers, with one number each", given=text, remedy=_EXAMPLES
        )
    layers = _layers(names, int(getattr(config, "num_hidden_layers", 0)), text)
    counts = {}
    for name, whole, units in (("ffn", neurons_of(config), "neurons"), ("heads", heads_of(config), "heads")):
        width = given.get(name)
        if width is None:
            continue
        if not re.fullmatch(r"[0-9]{1,9}", width) or not 1 <= int(width) <= whole:
            raise InputError(
                f"no such number of {units} in this teacher's layers, which have {whole}"
                if whole
                else f"the layers of a {config.model_type} cannot be made narrower",
                given=text,
                remedy=f"{_PREFIX}{names},{name}={max(1, whole // 2)}" if whole else "name the layers alone",
            )
        counts[name] = None if int(width) == whole else int(width)
    return Cut(layers, **counts)


def check_cut(text: str, teacher: str) -> None:
    """Refuse, before anything is trained, what cannot be cut out of a teacher.

    Raises:
        InputError: as `parse_cut`; or it has no stack of layers; or these layers would do something else in their new
            places, and the config cannot say it; or they cannot be made so narrow, see `feed_forwards` and
            `attentions`.
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
    if wanted.ffn is not None and not _can_be_narrowed(config, Cut((), ffn=wanted.ffn)):
        raise InputError(
            "the feed-forward parts of this teacher cannot be made narrower: they are not two linear layers each, or "
            "its config cannot say it",
            given=f"{text} of a {config.model_type}",
            remedy="name the layers alone, without ffn=",
        )
    if wanted.heads is not None and not _can_be_narrowed(config, replace(wanted, layers=())):
        raise InputError(
            "this teacher's layers cannot do with fewer heads: their attention is not four linear layers, or more of "
            "the model is made for all heads",
            given=f"{text} of a {config.model_type}",
            remedy="name the layers without heads=",
        )


def can_be_cut(teacher: str, wanted: Cut) -> bool:
    """Whether a student with these layers of a teacher opens as what it was cut as; True where that cannot be told
    without the teacher's weights."""
    return _opens_as_it_was_cut(load_config(teacher), wanted) is not False


def half_width(teacher: str) -> Cut:
    """Half of a teacher's neurons and half of its heads, of no layer yet; None for what its layers cannot do with fewer
    of."""
    config = load_config(teacher)
    ffn, heads = neurons_of(config) // 2, heads_of(config) // 2
    half = Cut((), ffn=ffn) if ffn and _can_be_narrowed(config, Cut((), ffn=ffn)) else Cut(())
    both = replace(half, heads=heads)
    return both if heads and _can_be_narrowed(config, both) else half


def _can_be_narrowed(config: PretrainedConfig, width: Cut) -> bool:
    """Whether all layers of a model of the config can have so many neurons or heads."""
    every = replace(width, layers=tuple(range(config.num_hidden_layers)))
    return bool(_opens_as_it_was_cut(config, every)) and (width.heads is None or _does_without(config, width.heads))


def _does_without(config: PretrainedConfig, heads: int) -> bool:
    """Whether an encoder with fewer heads answers as a whole one whose other heads say nothing. Shapes do not show it,
    where something else counts the heads too, such as MPNet's biases of positions. One layer of random weights is
    tried, under few token vectors."""
    one = type(config).from_dict(config.to_dict())
    _tell_of_layers(one, (0,))
    one.vocab_size = 10 + max([each for name in _SPECIAL if isinstance(each := getattr(one, name, None), int)] or [0])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)  # not those of GPUs, which nothing would give back
        try:
            whole = with_its_heads(AutoModel.from_config(one)).float().eval()
            for part in attentions(whole):
                for linear in (*part.makers, part.reader):  # far from even attention, where a wrong head would not show
                    nn.init.normal_(linear.weight, std=2 * linear.in_features**-0.5)
                part.reader.weight[:, heads * part.width :] = 0
            ids = torch.randint(one.vocab_size, (2, 12))
            small = cut(whole, Cut((0,), heads=heads), first_units)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found, wanted = (model(**inputs).last_hidden_state for model in (small, whole))
        except _NOT_MADE:
            return False
        return bool(torch.allclose(found, wanted, atol=1e-3))


def _opens_as_it_was_cut(config: PretrainedConfig, wanted: Cut) -> bool | None:
    """Whether a model of the config, once cut, is the model of the config that the cut one has; None where no model can
    be made of the config alone."""
    whole = _without_weights(config)
    if whole is None:
        return None
    try:
        small = cut(whole, wanted, first_units)
        again = _without_weights(type(config).from_dict(small.config.to_dict()))  # as a file would be read
        return again is not None and _form(small) == _form(again)
    except _NOT_MADE:  # no stack of layers, neurons of another form, or a config that cannot be
        return False


def _without_weights(config: PretrainedConfig) -> PreTrainedModel | None:
    """The encoder of a config, whose weights have shapes and no numbers; None where it takes more than the config."""
    try:
        with torch.device("meta"):
            return with_its_heads(AutoModel.from_config(config))
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


def cut(model: PreTrainedModel, wanted: Cut, importance: Importance) -> PreTrainedModel:
    """A copy of the model with these layers, in this order, and of their neurons and heads those that matter most; all
    other weights are the same.

    Args:
        model: a classifier.
        wanted: what to keep.
        importance: tells how much the units of the copy, which has its layers by then, matter.
    """
    small = copy.deepcopy(model)
    name, stack = encoder_layers(small)
    parent = small.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.ModuleList([stack[layer] for layer in wanted.layers]))
    _tell_of_layers(small.config, wanted.layers)
    narrower: list[tuple[Part, int]] = []
    if wanted.ffn is not None:
        narrower += [(part, wanted.ffn) for part in feed_forwards(small)]
        setattr(small.config, str(neurons_field(small.config)), wanted.ffn)
    if wanted.heads is not None:
        narrower += [(part, wanted.heads) for part in attentions(small)]
        setattr(small.config, HEADS_FIELD, wanted.heads)
    if narrower:
        for (part, count), each in zip(narrower, importance(small, [part for part, _ in narrower]), strict=True):
            keep(part, each.topk(count).indices.sort().values)
    return small


def _tell_of_layers(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Change a config to one of these layers, in place. What it lists for each layer, such as the kinds of attention in
    `layer_types`, goes with the layer."""
    whole = config.num_hidden_layers
    for name, listed in config.to_dict().items():
        if any(part in name for part in _LISTS) and isinstance(listed, (list, tuple)) and len(listed) == whole:
            setattr(config, name, [listed[layer] for layer in layers])
    config.num_hidden_layers = len(layers)


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
