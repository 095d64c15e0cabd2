"""The process of one subject of `kdc bench`: loads a model, answers made-up rows, and times itself.

Reads JSON lines, and replies with pickled objects on stdout. The first line says what to load; the reply is `Loaded`.
Each further line asks for a `Turn`. An empty line ends the process; the reply is its peak memory in bytes. A `KdcError`
as reply ends it too.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME
from kdc.common.errors import InputError, KdcError, installing
from kdc.common.memory import own_peak_memory_bytes
from kdc.common.pace import seconds_of
from kdc.serving.engine.tokenizing import Text, row_of
from kdc.tools.bench.result import Loaded, Turn

_LEAST_CALLS = 5
_WARM_UPS = 3


@dataclass(frozen=True)
class Model:
    answer: Callable[[list[Text]], Any]  # rows to probabilities
    count_tokens: Callable[[Text], int]  # special tokens included
    is_pair: bool
    about: Loaded

    def row(self, length: int) -> Text:
        return row_of(length, self.count_tokens, is_pair=self.is_pair)

    def time(self, batch: int, length: int, seconds: float) -> Turn:
        row = self.row(length)
        rows = [row] * batch
        for _ in range(_WARM_UPS):
            self.answer(rows)
        times: list[float] = []
        while len(times) < _LEAST_CALLS or sum(times) < 1000 * seconds:
            times.append(1000 * seconds_of(lambda: self.answer(rows)))
        return Turn(tokens=self.count_tokens(row), ms=tuple(times))


def load(path: Path, *, variant: str | None, device: Any, threads: int | None) -> Model:
    """Load an artifact, or a model in torch. Other folders, or a variant for torch, raise InputError."""
    if (path / MANIFEST_NAME).exists():
        return _load_artifact(path, variant, device, threads)
    if not (path / "config.json").exists():
        remedy = "name a folder with manifest.json or config.json"
        raise InputError("neither an artifact nor a Hugging Face model", given=path, remedy=remedy)
    if variant is not None:
        raise InputError("a model in torch has no variants", given=variant, remedy=f"name it as {path}")
    return _load_torch(path, device, threads)


def _load_artifact(path: Path, variant: str | None, device: Any, threads: int | None) -> Model:
    from kdc.serving.engine.engine import Engine
    from kdc.serving.engine.long_texts import row_tokens

    engine = Engine.load(path, variant=variant, device=device, threads=threads)
    engine.expect_made_up_rows()
    return Model(
        answer=lambda rows: engine.predict(rows, batch_size=len(rows)),
        count_tokens=lambda row: row_tokens(engine.encode([row])[0]),
        is_pair=engine.task.is_pair,
        about=Loaded(
            runtime="onnxruntime",
            variant=engine.variant,
            on=engine.provider,
            threads=engine.threads,
            notes=tuple(engine.notes),
            longest=engine.tokenizer_info.longest,
        ),
    )


def _load_torch(path: Path, device: str, threads: int | None) -> Model:
    try:
        import torch
        from transformers import AutoTokenizer

        from kdc.pipeline.models.opening import open_classifier
    except ModuleNotFoundError as error:
        what, missing = "a model in torch needs the compress extra", f"no module {error.name}"
        raise KdcError(what, given=missing, remedy=installing("compress")) from None

    from kdc.common.cores import usable_cores

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError("no CUDA device is available", given="--device cuda", remedy="`kdc doctor` says why")
    on = "cuda" if device != "cpu" and has_cuda else "cpu"
    torch.set_num_threads(threads or usable_cores())
    try:
        model = open_classifier(path).to(on).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        remedy = "name a folder of save_pretrained"
        raise InputError(f"cannot load the model: {error}", given=path, remedy=remedy) from error
    longest = min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))

    def answer(rows: list[Text]) -> Any:
        batch = tokenizer(rows, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(on)
        with torch.inference_mode():
            return model(**batch).logits.softmax(-1).cpu()

    return Model(
        answer=answer,
        count_tokens=lambda row: len(tokenizer(row)["input_ids"]),
        is_pair=False,
        about=Loaded(
            runtime="torch",
            variant=str(model.dtype).removeprefix("torch."),
            on=on,
            threads=torch.get_num_threads(),
            notes=(),
            longest=longest,
        ),
    )


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print on stdout too

    def reply(value: object) -> None:
        pickle.dump(value, replies)
        replies.flush()

    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        request = json.loads(sys.stdin.readline())
        model = load(Path(request.pop("path")), **request)
        model.answer([model.row(8)])
        reply(model.about)
        for line in iter(sys.stdin.readline, ""):
            if not line.strip():
                break
            reply(model.time(**json.loads(line)))
        reply(own_peak_memory_bytes())
    except KdcError as error:
        reply(error)


if __name__ == "__main__":
    main()
