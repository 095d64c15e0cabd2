"""Presets: the settings of a recipe, a model family or a task, which hold unless the person sets them otherwise."""

from typing import Any

# `paper`: Azimi et al. 2024, section 4 (r 8, alpha 16, dropout 0.05, query and value, T 2, alpha 0.5, lr 5e-4).
# `best`: what measured best here; which layers are kept matters more than anything else (docs/method.md).
RECIPES: dict[str, dict[str, Any]] = {
    "best": {
        "student": {
            "model": "layers:first-and-last",
            "cut_from": "finetuned",
            "learning_rate": 1e-3,
            "min_steps": 1500,
            "alpha": 0.9,
            "dropout": 0.0,
            "lora": {"r": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
        },
    },
    "paper": {
        "teacher": {"from_probe": "off", "min_steps": 0},
        "student": {
            "model": "layers:every-second",
            "cut_from": "pretrained",
            "learning_rate": 5e-4,
            "min_steps": 400,
            "alpha": 0.5,
            "dropout": "own",
            "lora": {"r": 8, "alpha": 16, "dropout": 0.05, "targets": "query-value"},
        },
    },
}

# `minilm` has no `student`: the recipe cuts it from the teacher, which `models/minilm.py` finds.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {
        "teacher": {"model": "google-bert/bert-base-uncased", "learning_rate": 3e-5},
        "student": {"model": "distilbert/distilbert-base-uncased"},
    },
    "roberta": {
        "teacher": {"model": "FacebookAI/roberta-base", "learning_rate": 2e-5},
        "student": {"model": "distilbert/distilroberta-base"},
    },
    "deberta": {
        "teacher": {"model": "microsoft/deberta-v3-base", "learning_rate": 2e-5},
        "student": {"model": "microsoft/deberta-v3-small"},
    },
    "minilm": {"teacher": {"model": "minilm", "learning_rate": 1e-4}},
}

# Learning rates of a section that is trained in the other way than by default: adapters need more, all weights less.
METHOD_RATES: dict[str, dict[str, float]] = {"teacher": {"lora": 5e-4}, "student": {"full": 1e-4}}

# Small tasks need more passes; WNLI's dev set is adversarial to its train set, so nobody beats the majority there.
_SMALL: dict[str, Any] = {"teacher": {"epochs": 5}, "student": {"epochs": 8}}
TASK_PRESETS: dict[str, dict[str, Any]] = {
    "cola": {"student": {"epochs": 5}},
    "mrpc": _SMALL,
    "stsb": _SMALL,
    "rte": _SMALL,
    "wnli": {"student": {"allow_majority": True}},
    # This task is made to take minutes: it has fewer steps and evaluations, and shorter measurements, than others.
    "pydocs": {
        "teacher": {"epochs": 2, "min_steps": 0, "evaluations": 4},
        "student": {"min_steps": 500, "evaluations": 4},
        "quantize": {"rounds": 6},
        "evaluate": {"latency_rows": 50, "throughput_rows": 128},
    },
}
