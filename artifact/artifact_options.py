"""Options for artifacts and contracts: `LIMITS` to compress to, `TERMS` to judge again."""

from kdc.common.command_options import Setting, settings

VARIANT = Setting("variant", str, "What to load: fp32, int8, fp16 or cascade (default: the manifest's choice).")
SHA256 = Setting("expect-sha256", str, "SHA-256 that the manifest must have; any other artifact is refused.")
_VERIFY = "Public key, a PEM file or env:NAME. One of these keys must have signed the artifact. Repeatable."
VERIFY_KEY = Setting("verify-key", list[str], _VERIFY)
ALLOW_FAILED = Setting("allow-failed", bool, "Accept an artifact that failed its contract.")
REPLACE = Setting("force", bool, "Replace another artifact that is there already.")
TEXTS = settings(
    "",
    None,
    ("text", str, "Name of the column with the text (default: as in training)."),
    ("text-pair", str, "Name of the column with the second text of a pair (default: as in training)."),
)
DIALECT = settings(
    "",
    None,
    ("delimiter", str, "Character between the fields of .csv and .tsv (default: comma and tab)."),
    ("encoding", str, "Encoding of text files, for example cp1252 or utf-16 (default utf-8)."),
)
COLUMNS = (
    *TEXTS,
    Setting("label", str, "Name of the column with the label (default label)."),
    Setting("separator", str, "Character that separates the labels of a multi-label cell."),
    *DIALECT,
)
SLICE = Setting("slice", list[str], "Give the metrics also by value of this column, or by length. Repeatable.")

_PANEL = "Limits"
LIMITS = settings(
    "",
    _PANEL,
    ("max-latency-ms", float, "Latency of one row, p95, in milliseconds."),
    ("max-size-mb", float, "Size of the ONNX file and tokenizer.json together, in MB (1,000,000 bytes)."),
    ("max-drop", float, "Points of the metric that the student may score below the teacher or a better baseline."),
    (
        "require",
        list[str],
        "Bound that the artifact's decisions must keep on held-out rows: LABEL:precision>=0.95, LABEL:recall>=0.9, "
        "LABEL:fpr<=0.01, accuracy>=0.98 (of the answered rows), coverage>=0.5 (share of answered rows), "
        "accuracy[language=de]>=0.9 (of the rows with this value of a column). Repeatable.",
    ),
)
TERMS = (
    *LIMITS,
    *settings(
        "",
        _PANEL,
        ("min-rows-per-s", float, "Throughput in batches of 32, rows a second."),
        (
            "at",
            str,
            "Timing conditions, such as length=64,batch=1 (tokens a row, rows a call); also percentile=95 (of the "
            "latencies), threads=2 (of a forward pass).",
        ),
        (
            "evidence",
            str,
            "Judge --max-drop and --require by interval, the whole confidence interval (default), or point, the "
            "estimate alone.",
        ),
        (
            "against",
            str,
            "What --max-drop compares with: teacher, or best (default), the better of teacher and baselines.",
        ),
        ("confidence", float, "Confidence level of these intervals, above 0.5 and at most 0.99 (default 0.95)."),
    ),
)
