"""The published figures: Azimi et al. 2024 (arXiv 2410.20777), tables 1 to 3, transcribed second-hand from a public
reproduction's tables. MCC for CoLA, Pearson or Spearman for STS-B as reported there; of MRPC and QQP it is not said
there whether accuracy or F1 was meant.
"""

from __future__ import annotations

# family: method: task: points. MNLI's are matched and mismatched.
SCORES: dict[str, dict[str, dict[str, float]]] = {
    "bert": {
        "fft": {
            "cola": 57.7,
            "mnli": 84.5,
            "mnli_mismatched": 84.9,
            "mrpc": 89.0,
            "qnli": 91.8,
            "qqp": 89.7,
            "rte": 71.6,
            "sst2": 92.8,
            "stsb": 89.5,
            "wnli": 56.3,
        },
        "lora": {
            "cola": 56.9,
            "mnli": 83.4,
            "mnli_mismatched": 83.9,
            "mrpc": 89.2,
            "qnli": 91.1,
            "qqp": 87.9,
            "rte": 70.1,
            "sst2": 92.6,
            "stsb": 88.9,
            "wnli": 56.9,
        },
        "kd-lora": {
            "cola": 56.3,
            "mnli": 82.0,
            "mnli_mismatched": 82.4,
            "mrpc": 88.3,
            "qnli": 89.7,
            "qqp": 89.1,
            "rte": 64.0,
            "sst2": 92.0,
            "stsb": 88.7,
            "wnli": 56.3,
        },
    },
    "roberta": {
        "fft": {
            "cola": 60.9,
            "mnli": 87.7,
            "mnli_mismatched": 87.4,
            "mrpc": 91.1,
            "qnli": 92.7,
            "qqp": 89.8,
            "rte": 74.8,
            "sst2": 94.3,
            "stsb": 90.8,
            "wnli": 56.3,
        },
        "lora": {
            "cola": 59.4,
            "mnli": 87.2,
            "mnli_mismatched": 86.9,
            "mrpc": 89.9,
            "qnli": 92.8,
            "qqp": 88.6,
            "rte": 71.8,
            "sst2": 94.2,
            "stsb": 90.3,
            "wnli": 56.3,
        },
        "kd-lora": {
            "cola": 56.8,
            "mnli": 83.3,
            "mnli_mismatched": 83.4,
            "mrpc": 89.3,
            "qnli": 90.7,
            "qqp": 87.3,
            "rte": 65.3,
            "sst2": 92.9,
            "stsb": 87.9,
            "wnli": 56.3,
        },
    },
    "deberta": {
        "fft": {
            "cola": 67.8,
            "mnli": 90.3,
            "mnli_mismatched": 90.6,
            "mrpc": 91.9,
            "qnli": 94.1,
            "qqp": 91.2,
            "rte": 85.0,
            "sst2": 95.9,
            "stsb": 91.5,
            "wnli": 66.9,
        },
        "lora": {
            "cola": 69.1,
            "mnli": 90.3,
            "mnli_mismatched": 90.2,
            "mrpc": 90.9,
            "qnli": 94.3,
            "qqp": 90.4,
            "rte": 84.0,
            "sst2": 96.0,
            "stsb": 91.1,
            "wnli": 56.3,
        },
        "kd-lora": {
            "cola": 68.1,
            "mnli": 88.8,
            "mnli_mismatched": 89.0,
            "mrpc": 90.7,
            "qnli": 93.4,
            "qqp": 89.9,
            "rte": 78.8,
            "sst2": 95.7,
            "stsb": 89.8,
            "wnli": 56.3,
        },
    },
}
AVERAGES: dict[str, dict[str, float]] = {
    "bert": {"fft": 80.8, "lora": 80.1, "kd-lora": 78.9},
    "roberta": {"fft": 82.6, "lora": 81.7, "kd-lora": 79.3},
    "deberta": {"fft": 86.5, "lora": 85.3, "kd-lora": 84.1},
}
MEMORY_MB: dict[str, dict[str, float]] = {
    "bert": {"fft": 1332.0, "lora": 463.5, "kd-lora": 296.8},
    "roberta": {"fft": 1515.9, "lora": 531.9, "kd-lora": 358.3},
    "deberta": {"fft": 2234.5, "lora": 763.4, "kd-lora": 590.3},
}
INFERENCE_S: dict[str, dict[str, float]] = {
    "bert": {"fft": 6.10, "lora": 6.22, "kd-lora": 5.36},
    "roberta": {"fft": 7.21, "lora": 7.19, "kd-lora": 4.44},
    "deberta": {"fft": 14.37, "lora": 15.62, "kd-lora": 10.38},
}
SOURCE = (
    "Azimi et al. 2024, arXiv 2410.20777, tables 1 to 3; transcribed second-hand from a public reproduction's tables"
)
