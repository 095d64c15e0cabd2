"""Classifiers over a teacher's token vectors, without attention.

`linear` averages tokens and neighbouring pairs (Joulin et al. 2016, arXiv 1607.01759). `static` reads a bag of tokens
(Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods"). `conv` adds convolutions (Kim 2014, arXiv
1408.5882).
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from kdc.common.errors import InputError
from kdc.pipeline.models.pooling import head_dropout


@dataclass(frozen=True)
class Shape:
    width: int
    channels: int
    window: int  # tokens per convolution
    depth: int  # 0: bag of tokens
    hidden: int  # 0: a linear model, without a maximum
    trains_vectors: bool
    pairs: int = 0  # hash buckets for token pairs; 0: none


SHAPES = {
    "linear": Shape(width=32, channels=0, window=0, depth=0, hidden=0, trains_vectors=True, pairs=1 << 15),
    "static": Shape(width=256, channels=0, window=0, depth=0, hidden=256, trains_vectors=True),
    "conv": Shape(width=128, channels=256, window=3, depth=1, hidden=256, trains_vectors=False),
}
_MOST = {"width": 1024, "channels": 4096, "window": 9, "depth": 4, "hidden": 4096, "pairs": 1 << 20}
_QUOTED = 100  # characters in errors
_FAR_BELOW = -1e4  # fits fp16
_LARGEST = 127  # of int8
_FACTOR = 1_000_003  # a large prime


class ShallowClassifier(PreTrainedModel):
    """In training, a projection narrows vectors of the teacher's width.

    Folded, the table has one more row, for padding, and the largest number of each column is 127: int8 needs no scales.
    """

    base_model_prefix = "shallow"
    _supports_sdpa = True  # a teacher's config may ask for it
    vectors: Any
    projection: Any
    pairs: Any
    share: Any
    hidden: Any

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        sizes = dict(config.kdc_shallow)
        unfolded = sizes.pop("unfolded_width", None)
        shape = Shape(**sizes)
        self.vectors = nn.Embedding(config.vocab_size + (not unfolded), unfolded or shape.width)
        self.projection = nn.Linear(unfolded, shape.width, bias=False) if unfolded else None
        self.window = shape.window
        # Padding adds nothing to a convolution or a sum, and is below each number that a maximum reads.
        self.padding = _FAR_BELOW if shape.hidden and not shape.depth else 0.0
        inputs = [shape.width, *[shape.channels] * shape.depth]
        self.convolutions = nn.ModuleList([nn.Linear(shape.window * size, shape.channels) for size in inputs[:-1]])
        self.pairs = nn.Embedding(shape.pairs, inputs[-1]) if shape.pairs else None
        self.share = nn.Linear(inputs[-1], 1, bias=False) if shape.hidden else None
        self.hidden = nn.Linear(2 * inputs[-1], shape.hidden) if shape.hidden else None
        self.dropout = nn.Dropout(head_dropout(config))
        self.classifier = nn.Linear(shape.hidden or inputs[-1], cast(int, config.num_labels))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *given: Any, **named: Any) -> Any:
        """Freezes untrained vectors, since transformers 5 replaces parameters."""
        loaded = super().from_pretrained(*given, **named)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.vectors.weight.requires_grad_(model.config.kdc_shallow["trains_vectors"])
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.vectors

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vectors = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Inputs are (rows, tokens)."""
        is_token = attention_mask.bool()
        mask = attention_mask.unsqueeze(-1).to(self.classifier.weight.dtype)
        states = self._lookup(input_ids, is_token)
        for place, convolution in enumerate(self.convolutions):
            if place or self.projection is not None:
                states = _windows(states, self.window)
            states = functional.relu(convolution(states)) * mask
        if self.hidden is None:
            pooled = states.sum(1) / mask.sum(1)
            if self.pairs is not None:
                pooled = pooled + self._mean_of_pairs(input_ids, mask)
        else:
            # From the left, ONNX Runtime computes one output in half the time.
            scores = self.share.weight @ states.transpose(1, 2)
            shares = torch.where(is_token.unsqueeze(1), scores, _FAR_BELOW).softmax(-1)
            mean = (shares @ states).squeeze(1)
            pooled = functional.relu(self.hidden(torch.cat([mean, states.amax(1)], dim=-1)))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))

    def _lookup(self, input_ids: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
        """Vectors (rows, tokens, width); windows of them if folded, since windows of ids are cheaper."""
        if self.projection is not None:
            return torch.where(is_token.unsqueeze(-1), self.projection(self.vectors(input_ids)), self.padding)
        padding = self.vectors.num_embeddings - 1
        ids = torch.where(is_token, input_ids, padding)
        if not self.convolutions:
            return self.vectors(ids)
        return self.vectors(_windows(ids.unsqueeze(-1), self.window, padding)).flatten(2)

    def _mean_of_pairs(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hashes = (input_ids[:, :-1] * _FACTOR + input_ids[:, 1:]) % self.pairs.num_embeddings
        both = mask[:, 1:] * mask[:, :-1]
        return (self.pairs(hashes) * both).sum(1) / both.sum(1).clamp(min=1)

    def folded(self) -> "ShallowClassifier":
        if self.projection is None:
            return self
        config = copy.deepcopy(self.config)
        del config.kdc_shallow["unfolded_width"]
        small = ShallowClassifier(config)
        weights = {name: value for name, value in self.state_dict().items() if name != "projection.weight"}
        with torch.no_grad():
            table = self.projection(self.vectors.weight)
            scales = table.abs().amax(0).clamp(min=torch.finfo(table.dtype).tiny) / _LARGEST
            padding = torch.full_like(table[:1], -_LARGEST - 1 if self.padding else 0)
            weights["vectors.weight"] = torch.cat([table / scales, padding])
            for name in self._readers_of_vectors():
                weights[name] = weights[name] * scales.repeat(weights[name].shape[1] // len(scales))
            if self.pairs is not None:
                weights["pairs.weight"] = weights["pairs.weight"] / scales
        small.load_state_dict(weights)
        return small.eval()

    def _readers_of_vectors(self) -> Sequence[str]:
        if self.convolutions:
            return ["convolutions.0.weight"]
        return ["classifier.weight"] if self.hidden is None else ["share.weight", "hidden.weight"]


def _windows(states: torch.Tensor, window: int, padding: float = 0) -> torch.Tensor:
    before = (window - 1) // 2
    padded = functional.pad(states, (0, 0, before, window - 1 - before), value=padding)
    return torch.cat([padded[:, start : start + states.shape[1]] for start in range(window)], dim=-1)


def parse_shape(spec: str) -> Shape:
    """Parse a spec such as `static` or `conv:channels=128,window=5`.

    Raises:
        InputError: unknown, repeated or out-of-range sizes.
    """
    kind, _, parts = spec.partition(":")
    known = [name for name in _MOST if getattr(SHAPES[kind], name)]
    sizes: dict[str, int] = {}
    for part in parts.split(",") if parts else ():
        name, _, value = part.partition("=")
        is_new = name in known and name not in sizes
        if not is_new or not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= _MOST[name]:
            raise InputError(
                f"the student {kind} has no such size, has it twice, or it is no whole number in its range",
                given=f"{part[:_QUOTED]} in {spec[:_QUOTED]}",
                remedy="its sizes are " + ", ".join(f"{size} (1 to {_MOST[size]})" for size in known),
            )
        sizes[name] = int(value)
    return Shape(**asdict(SHAPES[kind]) | sizes)


def check_shape(spec: str, teacher: PretrainedConfig | None) -> None:
    """Raise InputError as `parse_shape`, and for a width above the teacher's."""
    shape = parse_shape(spec)
    widest = getattr(teacher, "embedding_size", None) or getattr(teacher, "hidden_size", None)
    if widest is not None and "width=" in spec and shape.width > widest:
        raise InputError(
            f"a student over the teacher's token vectors is at most as wide as they are, {widest}",
            given=spec,
            remedy=f"width={widest} or less",
        )


def shallow_over(teacher: Any, shape: Shape) -> tuple[ShallowClassifier, tuple[str, ...]]:
    """The classifier, at most as wide as the teacher's vectors, and its new modules.

    Vectors get a mean square of 1, which encoders leave to a norm.
    """
    config = copy.deepcopy(teacher.config)
    table = teacher.get_input_embeddings().weight.detach()
    config.kdc_pooling = None
    shape = replace(shape, width=min(shape.width, table.shape[1]))
    config.kdc_shallow = asdict(shape) | {"unfolded_width": table.shape[1]}
    config.vocab_size = table.shape[0]
    config.type_vocab_size = 1  # unread
    model = ShallowClassifier(config)
    with torch.no_grad():
        model.vectors.weight.copy_(table / table.square().mean().sqrt())
        if model.pairs is not None:
            model.pairs.weight.zero_()  # unseen pairs stay zero
    return model, tuple(name for name, _ in model.named_children() if name != "vectors")
