"""Options of `kdc study`: settings that all its trainings share, and who does them."""

from pathlib import Path

from kdc.common.command_options import Setting
from kdc.pipeline.config.compress_options import EPOCHS, MAX_TRAIN_ROWS, TRAINING_DEVICE
from kdc.serving.bulk.predict_options import RAY_ADDRESS

STUDY = (
    Setting(
        "recipe", str, "Distillation recipe: paper (default; the authors' script), paper-as-described or best.", "run"
    ),
    Setting("data", Path, "Folder with the data in GLUE's layout (default: the hub).", "data"),
    MAX_TRAIN_ROWS,
    EPOCHS,
    TRAINING_DEVICE,
)
STUDY_ENGINE = (
    Setting("engine", str, "local (default) trains one cell after the other; ray trains side by side on a cluster."),
    RAY_ADDRESS,
    Setting(
        "threads",
        int,
        "Threads of a training; with ray also the cores that it reserves (default: as the environment says; ray: 1).",
        least=1,
    ),
)
