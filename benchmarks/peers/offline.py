"""The student in torch without kdc: `offline.py pipeline|map MODEL ROWS.json`. Prints {"rows_per_second": ...}."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

_BATCH = 32


def main() -> None:
    way, folder, file = sys.argv[1:]
    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    pairs = not isinstance(rows[0], str)
    run = _pipeline(folder, pairs) if way == "pipeline" else _map(folder, pairs)
    run(rows[:_BATCH])
    began = time.perf_counter()
    run(rows)
    sys.stdout.write(json.dumps({"rows_per_second": len(rows) / (time.perf_counter() - began)}) + "\n")


def _pipeline(folder: str, pairs: bool) -> Any:
    from transformers import pipeline

    classify = pipeline("text-classification", model=folder, device="cpu")

    def run(rows: list[Any]) -> None:
        inputs = [{"text": first, "text_pair": second} for first, second in rows] if pairs else rows
        classify(inputs, batch_size=_BATCH, truncation=True)

    return run


def _map(folder: str, pairs: bool) -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def answer(batch: dict[str, list[str]]) -> dict[str, list[int]]:
        texts = (batch["first"], batch["second"]) if pairs else (batch["first"],)
        with torch.inference_mode():
            inputs = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
            return {"label": model(**inputs).logits.argmax(1).tolist()}

    def run(rows: list[Any]) -> None:
        first, second = zip(*rows, strict=True) if pairs else (rows, rows)
        Dataset.from_dict({"first": list(first), "second": list(second)}).map(answer, batched=True, batch_size=_BATCH)

    return run


if __name__ == "__main__":
    main()
