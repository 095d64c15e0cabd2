"""Options that say what a contract asks: `LIMITS` to compress to it, `TERMS` to judge it again."""

from kdc.common.command_options import settings

_PANEL = "Contract: what the artifact must keep (exit code 3: it does not, 4: not shown)"
LIMITS = settings(
    "",
    _PANEL,
    ("max-latency-ms", float, "Longest time of one call, in milliseconds (p95 of one row unless set otherwise)."),
    ("max-size-mb", float, "Largest size of the ONNX file and tokenizer.json together, in MB (1,000,000 bytes)."),
    ("max-drop", float, "How far the student's metric may be below the teacher's, in points (0 to 100)."),
    (
        "require",
        list[str],
        "A share of the evaluation rows that must be shown, by the artifact's decisions: LABEL:precision>=0.95, "
        "LABEL:recall>=0.9, LABEL:fpr<=0.01, accuracy>=0.98 (of the rows that are answered), coverage>=0.5 (rows that "
        "are answered). Repeatable.",
    ),
)
TERMS = (
    *LIMITS,
    *settings(
        "",
        _PANEL,
        ("min-rows-per-s", float, "Fewest rows a second, measured in batches of 32."),
        (
            "at",
            str,
            "How time is measured, any of length=64,batch=1,percentile=95,threads=2: tokens of a row, rows of a call, "
            "percentile of the calls' times, threads of a forward pass.",
        ),
        (
            "evidence",
            str,
            "What must keep to --max-drop and --require: interval, the confidence interval of what was measured "
            "(default), or point, what was measured itself.",
        ),
        (
            "against",
            str,
            "What --max-drop compares with: teacher, or best (default), the better one of teacher and baselines.",
        ),
        ("confidence", float, "Confidence of these intervals, above 0.5 and at most 0.99 (default 0.95)."),
    ),
)
