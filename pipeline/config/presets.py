"""Presets of recipes, model families and tasks."""

from typing import Any

# `best`: docs/benchmarks/students.md. `paper`: github.com/rambodazimi/KD-LoRA, src/BERT_KD_LoRA.py.
# `paper-as-described`: Azimi et al. 2024, section 4. Differences: docs/explanation/distillation.md.
_AS_PUBLISHED: dict[str, Any] = {"learning_rate": 5e-5, "batch_size": 16, "warmup": 0.0, "min_steps": 0, "epochs": 3}
RECIPES: dict[str, dict[str, Any]] = {
    "best": {"student": {"lora": {"dropout": 0.0}}},  # the rest are the settings' defaults
    "paper": {
        "teacher": _AS_PUBLISHED
        | {"head_learning_rate": 5e-5, "pooling": "first", "from_probe": "off", "kept_step": "last"},
        "student": _AS_PUBLISHED
        | {
            "cut_from": "pretrained",
            "kept_step": "last",
            "alpha": 0.5,
            "dropout": "own",
            "lora": {"r": 8, "alpha": 16, "dropout": 0.1, "targets": "query-value"},
        },
    },
    "paper-as-described": {
        "teacher": {"from_probe": "off", "min_steps": 0},
        "student": {
            "cut_from": "pretrained",
            "learning_rate": 5e-4,
            "min_steps": 400,
            "alpha": 0.5,
            "dropout": "own",
            "lora": {"r": 8, "alpha": 16, "dropout": 0.05, "targets": "query-value"},
        },
    },
}

# Students of families that name none.
CUTS = {"best": "layers:first-and-last", "paper": "layers:every-second", "paper-as-described": "layers:every-second"}

E5 = "intfloat/multilingual-e5-small@614241f622f53c4eeff9890bdc4f31cfecc418b3"
MINILM_50 = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2@e8f8c211226b894fcb81acc59f3b34ba3efd5f42"
MMBERT = "jhu-clsp/mmBERT-small@abc32620dd4f6ab06f5fbe905dc25f310618e09f"
_CUT = {"student": {"vocabulary": "auto"}}  # 250,000 pieces are most of their weights

# `models/minilm.py` finds minilm's teacher. Learning rates from e5 on are untested guesses.
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
    "e5": _CUT | {"data": {"prefix": "query: "}, "teacher": {"model": E5, "learning_rate": 1e-4, "pooling": "mean"}},
    "multilingual-minilm": _CUT | {"teacher": {"model": MINILM_50, "learning_rate": 1e-4, "pooling": "mean"}},
    "mmbert": _CUT | {"teacher": {"model": MMBERT, "learning_rate": 5e-5}},  # its own head reads the mean
    "modernbert": {"teacher": {"model": "answerdotai/ModernBERT-base", "learning_rate": 5e-5}},
    "ettin": {
        "teacher": {"model": "jhu-clsp/ettin-encoder-150m", "learning_rate": 5e-5},
        "student": {"model": "jhu-clsp/ettin-encoder-32m"},
    },
}

# Adapters need higher rates. `paper` follows the authors' scripts.
_RATES: dict[str, dict[str, float]] = {"teacher": {"lora": 5e-4}, "student": {"full": 1e-4}}
_METHOD_RATES = {"best": _RATES, "paper": _RATES | {"student": {"full": 5e-5}}, "paper-as-described": _RATES}


def method_rates(recipe: str, section: str, method: str) -> dict[str, float]:
    """For a non-default method."""
    rate = _METHOD_RATES.get(recipe, {}).get(section, {}).get(method)
    if rate is None:
        return {}
    # A recipe that sets both uses one rate.
    one_for_all = {"head_learning_rate"} & RECIPES[recipe].get(section, {}).keys()
    return dict.fromkeys(["learning_rate", *one_for_all], rate)


# Small tasks need more epochs. WNLI's dev set contradicts its training set: nobody beats the majority.
_SMALL: dict[str, Any] = {"teacher": {"epochs": 5}, "student": {"epochs": 8}}
TASK_PRESETS: dict[str, dict[str, Any]] = {
    "cola": {"student": {"epochs": 5}},
    "mrpc": _SMALL,
    "stsb": _SMALL,
    "rte": _SMALL,
    "wnli": {"student": {"allow_majority": True}},
    # Finishes in minutes.
    "pydocs": {
        "teacher": {"epochs": 2, "min_steps": 0, "evaluations": 4},
        "student": {"min_steps": 500, "evaluations": 4},
        "quantize": {"rounds": 6},
        "evaluate": {"latency_rows": 50, "throughput_rows": 128},
    },
}
