"""Names of files that stages share."""

PIECES = "pieces"  # stage vocabulary
BASELINE_LOGITS = "logits.npz"  # stage baselines: "<split>/<baseline>", tuning and evaluation splits
PROBE = "probe.npz"  # stage baselines: head on the mean token vector
SCORES = "scores.npy"  # stage teacher: a black box's logits, like `TEACHER_LOGITS`
TEACHER_LOGITS = "logits.npy"  # stage targets: (rows, outputs) float32, by row id
CONTROLS = {  # stage controls: folder, and whose tokens
    "student_without_kd": "student",
    "student_without_kd_by_score": "student",
    "student_without_kd_by_loss": "student",
    "student_without_unlabeled": "student",
    "teacher_lora": "teacher",
}
EVALUATION = "evaluation.npz"  # stage evaluate: for the artifact
BASELINE_SUFFIX = "_logits_to_beat"  # in `EVALUATION`
ALL_LOGITS = "logits.npz"  # stage evaluate: "<split>/<model>"
# Stage package; a later start may change them.
SETTINGS = "config.json"
MADE_FROM = "stages.json"  # fingerprints by stage
