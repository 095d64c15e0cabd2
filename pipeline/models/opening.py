"""Opens a classifier that was saved, of whatever class its config says."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, PretrainedConfig

from kdc.pipeline.models.configs import open_config
from kdc.pipeline.models.pooling import MeanPooledClassifier, is_mean_pooled
from kdc.pipeline.models.shallow import ShallowClassifier, says_shallow


def class_of(config: PretrainedConfig) -> Any:
    """The class whose `from_pretrained` opens a classifier of this config."""
    if says_shallow(config):
        return ShallowClassifier
    return MeanPooledClassifier if is_mean_pooled(config) else AutoModelForSequenceClassification


def open_classifier(place: str | Path, **options: Any) -> Any:
    """Open a classifier that `save_pretrained` wrote, of any form; the options are those of `from_pretrained`."""
    config = open_config(place)
    return class_of(config).from_pretrained(place, config=config, **options)
