from kdc.artifact.artifact_options import ALLOW_FAILED, DIALECT, TEXTS, VARIANT
from kdc.common.command_options import Setting

PREDICT = (
    *TEXTS,
    *DIALECT,
    Setting("prefix", str, "Prefix for the names of the new columns (default: none)."),
    Setting("all-scores", bool, "Add a column with the score of each class, not only of the best."),
    Setting("on-error", str, "Bad rows (no text, or too long): stop (default), or skip them."),
    Setting("errors", str, "File or URL for the list of skipped rows, in JSONL."),
    Setting(
        "max-text-chars", int, "Longest text, in characters (default: 200000); a longer one is a bad row.", least=1
    ),
    VARIANT,
    Setting(
        "threads",
        int,
        "Threads of all passes (default: all usable cores); with --engine ray, threads of one actor (default 1).",
        least=1,
    ),
    Setting("engine", str, "local (default) works in this process; ray in actors on a cluster, into a directory."),
    Setting("address", str, "Address of the Ray cluster, or auto (default: Ray on this machine alone)."),
    Setting("actors", int, "Number of Ray actors (default: as many as there are cores or GPUs).", least=1),
    Setting("force", bool, "Replace an existing output, and drop an unfinished job."),
    ALLOW_FAILED,
)
