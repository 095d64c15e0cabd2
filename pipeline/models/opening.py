"""Open saved classifiers of any class."""

from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PretrainedConfig

from kdc.pipeline.config.student_kinds import KINDS
from kdc.pipeline.models.configs import open_config
from kdc.pipeline.models.pooling import MeanPooledClassifier, is_mean_pooled
from kdc.pipeline.models.units import class_with_its_heads


def class_of(config: PretrainedConfig) -> Any:
    for kind in KINDS.values():
        if (own := kind.model_class(config)) is not None:
            return own
    if is_mean_pooled(config):
        return MeanPooledClassifier
    return class_with_its_heads(config, AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)


def as_served(model: Any) -> Any:
    return model.folded() if hasattr(model, "folded") else model


def open_classifier(place: str | Path, **options: Any) -> Any:
    """`options` as for `from_pretrained`."""
    config = open_config(place)
    return class_of(config).from_pretrained(place, config=config, **options)
