"""The compared servers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Manifest
from kdc.serving.engine.tokenizing import Text

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
# In their order of turns.
NAMES = ("kdc", "uvicorn", "at-once", "raw", "bentoml-batchable", "fastapi-pipeline", "infinity", "bento-empty")


@dataclass(frozen=True)
class Dialect:
    """How to ask a server; `labels` gives a reply's best label of each row."""

    path: str
    body: Callable[[Sequence[Text]], Any]
    labels: Callable[[Any], list[str]]


@dataclass(frozen=True)
class Server:
    """How to start a server.

    Attributes:
        health: path that answers 200 when ready.
        dialect: None if the server is only started.
        uses_torch: runs without OMP_NUM_THREADS, which is 1 for others.
    """

    name: str
    command: Callable[[int], list[str]]
    health: str
    dialect: Dialect | None
    environment: dict[str, str] = field(default_factory=dict)
    uses_torch: bool = False

    def variables(self) -> dict[str, str]:
        mine = base_variables() | self.environment
        if self.uses_torch:
            del mine["OMP_NUM_THREADS"]
        return mine


def base_variables() -> dict[str, str]:
    mine = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    mine.pop("PYTHONDONTWRITEBYTECODE", None)  # later starts use compiled files
    return mine


@dataclass(frozen=True)
class Subject:
    """What is served. `model` is the same student for transformers, `peers` the Python of its servers."""

    artifact: Path
    manifest: Manifest
    model: Path | None
    peers: Path | None
    scratch: Path


def all_servers(subject: Subject) -> tuple[dict[str, Server], dict[str, str]]:
    """Servers, and why others cannot run, by name."""
    bare = {"KDC_ARTIFACT": str(subject.artifact), "KDC_DRAIN_DELAY_S": "0", "KDC_DEVICE": "cpu"}
    servers = {
        "kdc": Server(
            "kdc",
            lambda port: [sys.executable, "-m", "kdc", "serve", str(subject.artifact), "--port", str(port)],
            "/health",
            _KDC,
            {"KDC_DRAIN_DELAY_S": "0", "KDC_DEVICE": "cpu"},
        ),
        "uvicorn": _bare("uvicorn", bare),
        "at-once": _bare("at-once", bare | {"PEER_ANSWERS_AT_ONCE": "yes"}),
        "bentoml-batchable": _bentoml(
            "bentoml-batchable",
            "bento_batchable:Batchable",
            subject,
            _batchable(subject.manifest.task.labels or ("score",)),
        ),
        "bento-empty": _bentoml("bento-empty", "bento_empty:Empty", subject, None),
    }
    peers, left_out = _torch_peers(subject)
    return servers | peers, left_out


def _bare(name: str, environment: dict[str, str]) -> Server:
    return Server(
        name, lambda port: [sys.executable, str(PEERS / "bare_uvicorn.py"), str(port)], "/health", _KDC, environment
    )


def _bentoml(name: str, service: str, subject: Subject, dialect: Dialect | None) -> Server:
    command = [sys.executable, "-m", "bentoml", "serve", service, "--working-dir", str(PEERS)]
    return Server(
        name,
        lambda port: [*command, "--host", "127.0.0.1", "--port", str(port)],
        "/readyz",
        dialect,
        {
            "BENTOML_HOME": str(subject.scratch / name),
            "BENTOML_DO_NOT_TRACK": "true",
            "PEER_ARTIFACT": str(subject.artifact),
        },
    )


def _torch_peers(subject: Subject) -> tuple[dict[str, Server], dict[str, str]]:
    if subject.peers is None:
        return {}, dict.fromkeys(("fastapi-pipeline", "infinity"), "no --peers")
    if subject.model is None:
        return {}, dict.fromkeys(("fastapi-pipeline", "infinity"), "the run directory has no merge/model")
    python, model = str(subject.peers), str(_same_cut(subject, subject.model))
    infinity = [
        python,
        "-c",
        "from infinity_emb.cli import cli; cli()",
        "v2",
        "--model-id",
        model,
        "--served-model-name",
        "student",
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--no-compile",
        "--host",
        "127.0.0.1",
        "--log-level",
        "warning",
    ]
    servers = {
        "fastapi-pipeline": Server(
            "fastapi-pipeline",
            lambda port: [python, str(PEERS / "fastapi_pipeline.py"), str(port)],
            "/health",
            _PIPELINE,
            {"PEER_MODEL": model},
            uses_torch=True,
        ),
        "infinity": Server(
            "infinity",
            lambda port: [*infinity, "--port", str(port)],
            "/health",
            _INFINITY,
            {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"},
            uses_torch=True,
        ),
    }
    needs = {"fastapi-pipeline": "fastapi, transformers, torch", "infinity": "infinity_emb, torch"}
    left_out = {name: why for name in servers if (why := _obstacle(python, needs[name]))}
    return {name: server for name, server in servers.items() if name not in left_out}, left_out


def _obstacle(python: str, modules: str) -> str:
    try:
        done = subprocess.run([python, "-c", f"import {modules}"], capture_output=True, text=True)
    except OSError as error:
        return f"--peers cannot be run: {error.strerror}"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["its import failed"])[-1]


def _same_cut(subject: Subject, model: Path) -> Path:
    folder = subject.scratch / "model"
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = subject.manifest.tokenizer.max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _kdc_body(rows: Sequence[Text]) -> dict[str, Any]:
    lists = [[row] if isinstance(row, str) else list(row) for row in rows]
    return {"inputs": lists[0] if len(lists) == 1 else lists}


def _kdc_labels(reply: Any) -> list[str]:
    return _best([reply] if isinstance(reply[0], dict) else reply)


def _best(rows: Any) -> list[str]:
    return [max(row, key=lambda entry: entry["score"])["label"] for row in rows]


def _batchable(labels: Sequence[str]) -> Dialect:
    return Dialect(
        "/classify",
        lambda rows: {"texts": [[row] if isinstance(row, str) else list(row) for row in rows]},
        lambda reply: [labels[row.index(max(row))] for row in reply],
    )


def _pipeline_body(rows: Sequence[Text]) -> dict[str, Any]:
    return {"inputs": [row if isinstance(row, str) else {"text": row[0], "text_pair": row[1]} for row in rows]}


def _infinity_body(rows: Sequence[Text]) -> dict[str, Any]:
    # infinity takes no pairs. Joined texts lack a separator, so an answer may differ.
    return {"model": "student", "input": [row if isinstance(row, str) else " ".join(row) for row in rows]}


_KDC = Dialect("/predict", _kdc_body, _kdc_labels)
_PIPELINE = Dialect("/predict", _pipeline_body, _best)
_INFINITY = Dialect("/classify", _infinity_body, lambda reply: _best(reply["data"]))
