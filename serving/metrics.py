"""Prometheus metrics of the service, over all its workers.

With more than one worker each process writes into `PROMETHEUS_MULTIPROC_DIR`; `exposition` adds them up. Labels take
few values whatever clients send: route names, statuses, model names, the model's own labels.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from serving.batcher import BatchReport
from serving.registry import Answer, Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What is counted."""

    def __init__(self) -> None:
        shared = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("kdc_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "kdc_request_seconds", "Seconds of a request.", ["route"], buckets=_SECONDS, registry=own
        )
        self.queued = Histogram(
            "kdc_queue_seconds", "Seconds that a batch's oldest row waited.", ["model"], buckets=_SECONDS, registry=own
        )
        self.inference = Histogram(
            "kdc_inference_seconds", "Seconds of a forward pass.", ["model"], buckets=_SECONDS, registry=own
        )
        self.batch_tokens = Histogram(
            "kdc_batch_tokens", "Tokens of a forward pass, padding included.", ["model"], buckets=_TOKENS, registry=own
        )
        self.batch_rows = Histogram("kdc_batch_rows", "Rows of a forward pass.", ["model"], buckets=_ROWS, registry=own)
        self.queue_tokens = Gauge(
            "kdc_queue_tokens",
            "Tokens that wait for a forward pass.",
            ["model"],
            multiprocess_mode="livesum",
            registry=own,
        )
        self.truncated = Counter("kdc_truncated_texts", "Texts that were cut.", ["model"], registry=own)
        self.predictions = Counter("kdc_predictions", "Rows by predicted label.", ["model", "label"], registry=own)
        self._shared = shared
        if shared:
            _forget_the_dead(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))

    def observe_batch(self, model: str, report: BatchReport) -> None:
        """One forward pass."""
        self.queued.labels(model).observe(report.queued_seconds)
        self.inference.labels(model).observe(report.seconds)
        self.batch_tokens.labels(model).observe(report.tokens)
        self.batch_rows.labels(model).observe(report.rows)
        self.queue_tokens.labels(model).set(report.queued_tokens)

    def predicted(self, model: Model, answer: Answer) -> None:
        """One request's answers."""
        labels = model.engine.labels
        if labels:
            for place, count in enumerate(np.bincount(answer.logits.argmax(axis=1), minlength=len(labels)).tolist()):
                if count:
                    self.predictions.labels(model.name, labels[place]).inc(count)
        if any(answer.truncated):
            self.truncated.labels(model.name).inc(sum(answer.truncated))

    def exposition(self) -> bytes:
        """All workers' metrics in Prometheus' text format."""
        if not self._shared:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)


def _forget_the_dead(folder: Path) -> None:
    """Drop the gauges of workers that were killed: they would count for ever."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid, str(folder))
        except PermissionError:  # alive, and another user's by now
            continue
