"""Mean-pooled classifiers.

Encoders trained for the mean, such as all-MiniLM, keep little in the first token, which transformers' heads read
(Reimers and Gurevych 2019, arXiv 1908.10084).
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

SENTENCE_POOLING = "1_Pooling/config.json"  # says how sentence-transformers pools


class MeanPooledClassifier(PreTrainedModel):
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig, encoder: PreTrainedModel | None = None) -> None:
        encoder = encoder or with_its_heads(AutoModel.from_config(config))
        super().__init__(encoder.config)  # has the encoder's attention
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # unread, so it must not train
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
        """Inputs are (rows, tokens)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(mean_of_tokens(states, attention_mask))))


def mean_of_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Masked mean (rows, width) of (rows, tokens, width)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def head_dropout(config: PretrainedConfig) -> float:
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return 0.1


def is_mean_pooled(config: PretrainedConfig) -> bool:
    return getattr(config, "kdc_pooling", None) == "mean"


def reads_the_mean(place: str, pooling: Pooling) -> bool:
    """With "auto", the checkpoint's config or `SENTENCE_POOLING` decides."""
    if pooling != "auto":
        return pooling == "mean"
    if is_mean_pooled(open_config(place)):
        return True
    note = file_of(place, SENTENCE_POOLING)
    return note is not None and bool(json.loads(note.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"))


def file_of(place: str, name: str) -> Path | None:
    """A model's file, from a folder or the hub; None if missing."""
    file = cached_file(
        place,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if file is None else Path(file)


def unread(info: dict[str, Any]) -> set[str]:
    """Weights that the checkpoint lacks or has in another shape."""
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return mismatched | set(info["missing_keys"])


def mean_pooled_over(place: str, config: PretrainedConfig) -> tuple[MeanPooledClassifier, set[str]]:
    """The classifier in fp32, and its `unread` weights. The config gets `kdc_pooling`."""
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
