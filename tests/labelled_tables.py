"""Makes tables for `kdc predict`, reads them back, and compares them with the answers that numpy gives too."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import bag_models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from kdc.serving.bulk import predict as bulk
from kdc.serving.bulk.predict import PredictResult
from kdc.serving.bulk.request import PredictRequest

LABELS = bag_models.SINGLE.labels


def make_artifact(folder: Path, **how: Any) -> Path:
    """Its int8 variant answers with softmax(`expected_logits`)."""
    return bag_models.write_artifact(folder, scale=1 / 1.01, temperature=1.0, **how)


def predict(artifact: Path, source: Path | str, output: Path | str, **options: Any) -> PredictResult:
    """`kdc predict` on two cores, with its other options at their defaults."""
    settings = {"device": "cpu", "threads": 2} | options
    return bulk.predict(PredictRequest(artifact=artifact, source=str(source), output=str(output), **settings))


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [
        {"id": number, "sentence": " ".join(generator.choices([f"w{n}" for n in range(20)], k=generator.randint(1, 5)))}
        for number in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read().to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def check(answered: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Assert that these are the same rows in the same order, with numpy's label and score."""
    assert [int(row["id"]) for row in answered] == [row["id"] for row in rows]
    for row, before in zip(answered, rows, strict=True):
        assert row["sentence"] == before["sentence"]
        shares = softmax(bag_models.expected_logits(before["sentence"]).astype(np.float64))
        assert row["label"] == LABELS[shares.argmax()]
        assert float(row["score"]) == pytest.approx(shares.max(), abs=1e-5)
