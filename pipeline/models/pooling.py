"""How a classifier reads its encoder: by the architecture's own head, or by the mean of its token vectors.

The heads of transformers read the first token. An encoder that was trained to be read by the mean of its token vectors
(Reimers and Gurevych 2019, arXiv 1908.10084), such as all-MiniLM, keeps little in its first token. A classifier over
the mean is saved like any other model of transformers, and `opening.py` opens it: its config says `kdc_pooling: mean`.
"""

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.hub import cached_file

from kdc.pipeline.models.configs import open_config
from kdc.pipeline.models.units import class_with_its_heads, with_its_heads

Pooling = Literal["auto", "first", "mean"]

SENTENCE_POOLING = "1_Pooling/config.json"  # sentence-transformers' note of how an encoder was trained to be read


class MeanPooledClassifier(PreTrainedModel):
    """An encoder, the mean of its last token vectors, dropout, and one linear layer."""

    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig, encoder: PreTrainedModel | None = None) -> None:
        encoder = encoder or with_its_heads(AutoModel.from_config(config))
        super().__init__(encoder.config)  # which says what form of attention the encoder can take
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # of the first token; nobody reads it, so it must not be trained
        self.encoder = encoder
        self.dropout = nn.Dropout(head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits (rows, outputs) of token ids (rows, tokens); the mask is 1 for a token and 0 for padding."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(mean_of_tokens(states, attention_mask))))


def mean_of_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean (rows, width) of the token vectors (rows, tokens, width) with a 1 in the mask (rows, tokens)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def head_dropout(config: PretrainedConfig) -> float:
    """The dropout rate that the architecture's own head would have."""
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return 0.1


def is_mean_pooled(config: PretrainedConfig) -> bool:
    """Whether the config is of a `MeanPooledClassifier`."""
    return getattr(config, "kdc_pooling", None) == "mean"


def reads_the_mean(place: str, pooling: Pooling) -> bool:
    """Whether a classifier over this checkpoint, a path or hub id, reads the mean. "auto" does if the checkpoint is a
    classifier over the mean already, or has the note that sentence-transformers keeps beside an encoder."""
    if pooling != "auto":
        return pooling == "mean"
    if is_mean_pooled(open_config(place)):
        return True
    note = cached_file(
        place,
        SENTENCE_POOLING,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return note is not None and bool(json.loads(Path(note).read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"))


def unread(info: dict[str, Any]) -> set[str]:
    """Names of the weights that a checkpoint lacks or has in another shape, by what `from_pretrained` says."""
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return mismatched | set(info["missing_keys"])


def mean_pooled_over(place: str, config: PretrainedConfig) -> tuple[MeanPooledClassifier, set[str]]:
    """A classifier that reads the mean of this checkpoint's encoder, in fp32.

    Args:
        place: a path or hub id, of an encoder alone or under any head, or of a classifier that reads the mean already.
        config: the checkpoint's, with the labels filled in; it is changed to say how its classifier reads.

    Returns:
        The model, and the names of its weights that were not read, see `unread`.
    """
    is_saved = is_mean_pooled(config)
    config.kdc_pooling = "mean"
    opener: Any = MeanPooledClassifier if is_saved else class_with_its_heads(config, AutoModel, MODEL_MAPPING)
    model, info = opener.from_pretrained(
        place, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if is_saved:
        return model, unread(info)
    missing = {
        f"{MeanPooledClassifier.base_model_prefix}.{key}" for key in unread(info) if not key.startswith("pooler.")
    }
    return MeanPooledClassifier(config, model), missing | {"classifier.weight", "classifier.bias"}
