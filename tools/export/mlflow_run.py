"""An artifact in MLflow: a run with lineage and measurements, and a `pyfunc` model without pickles."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import CPU_PROVIDER, Manifest
from kdc.common.errors import KdcError

_MODEL = Path(__file__).with_name("mlflow_model.py")
_LINEAGE = {"teacher", "student", "recipe", "seed", "data_fingerprint", "cpu", "gpu", "trained"}
_COSTS = {"size_bytes", "latency_p50_ms", "latency_p95_ms", "rows_per_second", "parity"}


def log_run(artifact: Path, manifest: Manifest, tracking: str, name: str) -> str:
    """Log a run in the task's experiment at `tracking`, and return the model's address.

    Raises:
        KdcError: MLflow is not installed, or refused.
    """
    mlflow = _mlflow()
    try:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_experiment(manifest.task.name)
        with (
            warnings.catch_warnings(),
            mlflow.start_run(run_name=f"{name} {manifest.sha256[:12]}", tags=_tags(manifest)),
        ):
            warnings.filterwarnings("ignore", ".*An input example")  # the signature says it
            mlflow.log_params(
                manifest.lineage.model_dump(include=_LINEAGE) | {"temperature": manifest.fitted_temperature}
            )
            mlflow.log_metrics(_metrics(manifest))
            return _log_model(mlflow, artifact, manifest, name)
    except mlflow.exceptions.MlflowException as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "an address is sqlite:///FILE.db, or http://... of a server; MLflow's message above says more"
        raise KdcError("MLflow refused", given=first, remedy=remedy) from error


def _log_model(mlflow: Any, artifact: Path, manifest: Manifest, name: str) -> str:
    """MLflow records the source path, so it gets a temporary copy."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(artifact, Path(scratch) / "artifact")
        code = shutil.copyfile(_MODEL, Path(scratch) / _MODEL.name)
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(code),
            artifacts={"artifact": f"{scratch}/artifact"},
            signature=_signature(mlflow, manifest),
            # kdc is on no package index: install it first.
            pip_requirements=["pandas"],
        )
    return str(info.model_uri)


def _mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        import mlflow
        import mlflow.pyfunc
    except ModuleNotFoundError as error:
        remedy = "`pip install mlflow`, or the smaller `pip install mlflow-skinny pandas sqlalchemy alembic`"
        raise KdcError("MLflow is not installed", given=f"no module {error.name}", remedy=remedy) from error
    return mlflow


def _tags(manifest: Manifest) -> dict[str, str]:
    tags = {"kdc.sha256": manifest.sha256, "kdc.version": manifest.kdc_version, "kdc.kind": manifest.task.kind}
    return tags if manifest.contract is None else tags | {"kdc.verdict": manifest.contract.verdict}


def _metrics(manifest: Manifest) -> dict[str, float]:
    measured: dict[str, Any] = {}
    for name, variant in manifest.variants.items():
        figures = variant.metrics | variant.model_dump(include=_COSTS)
        measured |= {f"{name}/{key}": value for key, value in figures.items()}
    known = next(iter(manifest.variants.values())).metrics
    measured |= {f"teacher/{key}": manifest.metrics.get("teacher", {}).get(key) for key in known}
    served = manifest.providers[CPU_PROVIDER]
    measured |= {f"served/{key}": measured[f"{served}/{key}"] for key in known}
    return {key: float(value) for key, value in measured.items() if value is not None}


def _signature(mlflow: Any, manifest: Manifest) -> Any:
    task, types = manifest.task, mlflow.types
    inputs = [types.ColSpec("string", name) for name in (task.text, task.text_pair) if name is not None]
    label = types.schema.Array("string") if task.traits.has_lists else "string"
    outputs = [types.ColSpec(label, "label"), *(types.ColSpec("float", f"score_{name}") for name in task.labels)]
    if not task.traits.has_labels:
        outputs = [types.ColSpec("float", "number")]
    return mlflow.models.ModelSignature(types.Schema(inputs), types.Schema(outputs))
