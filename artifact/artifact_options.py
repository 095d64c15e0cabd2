"""Options of commands that take an artifact."""

from kdc.common.command_options import Setting, settings

VARIANT = Setting("variant", str, "What to load: fp32, int8, fp16 or cascade (default: the manifest's choice).")
SHA256 = Setting("expect-sha256", str, "SHA-256 that the manifest must have; any other artifact is refused.")
ALLOW_FAILED = Setting("allow-failed", bool, "Accept an artifact that failed its contract.")
REPLACE = Setting("force", bool, "Replace another artifact that is there already.")
TEXTS = settings(
    "",
    None,
    ("text", str, "Name of the column with the text (default: as in training)."),
    ("text-pair", str, "Name of the column with the second text of a pair (default: as in training)."),
)
COLUMNS = (
    *TEXTS,
    Setting("label", str, "Name of the column with the label (default label)."),
    Setting("separator", str, "Character that separates the labels of a multi-label cell."),
)
