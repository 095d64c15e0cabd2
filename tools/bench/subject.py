"""One subject of `kdc bench`, in a process of its own: loads a model, answers made-up rows, times itself.

JSON lines on stdin and stdout. First comes what to load, answered when the first row was; then one line a case,
answered by milliseconds a call; an empty line ends it, answered by its peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME
from kdc.common.errors import InputError, KdcError
from kdc.common.memory import own_peak_memory_bytes
from kdc.serving.engine.synthetic import row_of
from kdc.serving.engine.tokenizing import Text

_LEAST_CALLS = 5
_WARM_UPS = 3


class Answering:
    """A model that is ready.

    Attributes:
        answer: rows to probabilities, tokenising included.
        tokens: of one row.
        is_pair: whether a row has two texts.
        longest: tokens that a row may have.
        about: what it is and runs on.
    """

    def __init__(
        self,
        answer: Callable[[list[Text]], Any],
        tokens: Callable[[Text], int],
        *,
        is_pair: bool,
        longest: int,
        about: dict[str, Any],
    ) -> None:
        self.answer = answer
        self.tokens = tokens
        self.is_pair = is_pair
        self.longest = longest
        self.about = about

    def row(self, length: int) -> Text:
        """A row of so many tokens, or as near as words get to it."""
        return row_of(length, self.tokens, is_pair=self.is_pair)

    def time(self, batch: int, length: int, seconds: float) -> dict[str, Any]:
        """Milliseconds of each call on `batch` rows, for so many seconds, after calls that do not count."""
        row = self.row(length)
        rows = [row] * batch
        for _ in range(_WARM_UPS):
            self.answer(rows)
        times: list[float] = []
        while len(times) < _LEAST_CALLS or sum(times) < 1000 * seconds:
            began = time.perf_counter()
            self.answer(rows)
            times.append(1000 * (time.perf_counter() - began))
        return {"tokens": self.tokens(row), "ms": times}


def load(path: Path, *, variant: str | None, device: Any, threads: int | None) -> Answering:
    """An artifact through the engine that serves, or a Hugging Face model in torch.

    Raises:
        InputError: it is neither.
        KdcError: it cannot be loaded.
    """
    if (path / MANIFEST_NAME).exists():
        return _artifact(path, variant, device, threads)
    if (path / "config.json").exists():
        if variant is not None:
            raise InputError("a model in torch has no variants", given=variant, remedy=f"name it as {path}")
        return _torch(path, device, threads)
    raise InputError(
        "neither an artifact nor a Hugging Face model",
        given=path,
        remedy="name a folder with manifest.json or config.json",
    )


def _artifact(path: Path, variant: str | None, device: Any, threads: int | None) -> Answering:
    from kdc.serving.engine.engine import Engine

    engine = Engine.load(path, variant=variant, device=device, threads=threads)
    return Answering(
        lambda rows: engine.predict(rows, batch_size=len(rows)),
        lambda row: len(engine.encode([row])[0]),
        is_pair=engine.task.is_pair,
        longest=engine.tokenizer_info.max_length,
        about={
            "runtime": "onnxruntime",
            "variant": engine.variant,
            "on": engine.provider,
            "threads": engine.threads,
            "notes": list(engine.notes),
        },
    )


def _torch(path: Path, device: str, threads: int | None) -> Answering:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from kdc.common.cores import usable_cores

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available", given="--device cuda", remedy="`kdc doctor` says why")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads or usable_cores())
    try:
        model = AutoModelForSequenceClassification.from_pretrained(path).to(place).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the model: {error}", given=path, remedy="name a folder of save_pretrained"
        ) from error
    longest = min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))

    def answer(rows: list[Text]) -> Any:
        batch = tokenizer(rows, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(place)
        with torch.inference_mode():
            return model(**batch).logits.softmax(-1).cpu()

    return Answering(
        answer,
        lambda row: len(tokenizer(row)["input_ids"]),
        is_pair=False,
        longest=longest,
        about={
            "runtime": "torch",
            "variant": str(model.dtype).removeprefix("torch."),
            "on": place,
            "threads": torch.get_num_threads(),
            "notes": [],
        },
    )


def main() -> None:
    """Load, answer, report."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        wanted = json.loads(sys.stdin.readline())
        subject = load(
            Path(wanted["path"]), variant=wanted["variant"], device=wanted["device"], threads=wanted["threads"]
        )
        subject.answer([subject.row(8)])
        reply({**subject.about, "longest": subject.longest})
        for line in iter(sys.stdin.readline, ""):
            if not line.strip():
                break
            reply(subject.time(**json.loads(line)))
        reply({"peak_memory_bytes": own_peak_memory_bytes()})
    except KdcError as error:
        reply({"error": [error.what, str(error.given), error.remedy], "exit_code": error.exit_code})
    except ModuleNotFoundError as error:
        remedy = "pip install 'kdc[compress]'"
        reply(
            {"error": ["a model in torch needs the compress extra", f"no module {error.name}", remedy], "exit_code": 1}
        )


if __name__ == "__main__":
    main()
