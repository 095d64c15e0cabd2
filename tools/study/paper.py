"""The published figures, for comparison: Azimi et al. 2024 (arXiv 2410.20777), tables 1 to 3.

They were transcribed second-hand from a public reproduction's tables. CoLA's is the Matthews correlation, STS-B's the
Pearson or Spearman correlation as reported there; whether MRPC's and QQP's are accuracy or F1 is not said there.
"""

from dataclasses import dataclass

SOURCE = (
    "Azimi et al. 2024, arXiv 2410.20777, tables 1 to 3; transcribed second-hand from a public reproduction's tables"
)
RANK = 8  # of the paper's adapters in these tables
# MNLI's two evaluation sets are the matched and the mismatched one.
_COLUMNS = ("cola", "mnli", "mnli_mismatched", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")


@dataclass(frozen=True)
class Published:
    """The paper's figures of one method of one family; without values where it has none."""

    points: tuple[float, ...] = ()  # on each of `_COLUMNS`
    average: float | None = None  # over the tasks, in points
    memory_mb: float | None = None  # peak memory while training
    inference_s: float | None = None  # seconds of inference on the paper's own rows and GPU

    @property
    def scores(self) -> dict[str, float]:
        """Points by column: the name of a task, or "mnli_mismatched"."""
        return dict(zip(_COLUMNS, self.points, strict=False))


# By family and method.
PUBLISHED = {
    ("bert", "fft"): Published((57.7, 84.5, 84.9, 89.0, 91.8, 89.7, 71.6, 92.8, 89.5, 56.3), 80.8, 1332.0, 6.10),
    ("bert", "lora"): Published((56.9, 83.4, 83.9, 89.2, 91.1, 87.9, 70.1, 92.6, 88.9, 56.9), 80.1, 463.5, 6.22),
    ("bert", "kd-lora"): Published((56.3, 82.0, 82.4, 88.3, 89.7, 89.1, 64.0, 92.0, 88.7, 56.3), 78.9, 296.8, 5.36),
    ("roberta", "fft"): Published((60.9, 87.7, 87.4, 91.1, 92.7, 89.8, 74.8, 94.3, 90.8, 56.3), 82.6, 1515.9, 7.21),
    ("roberta", "lora"): Published((59.4, 87.2, 86.9, 89.9, 92.8, 88.6, 71.8, 94.2, 90.3, 56.3), 81.7, 531.9, 7.19),
    ("roberta", "kd-lora"): Published((56.8, 83.3, 83.4, 89.3, 90.7, 87.3, 65.3, 92.9, 87.9, 56.3), 79.3, 358.3, 4.44),
    ("deberta", "fft"): Published((67.8, 90.3, 90.6, 91.9, 94.1, 91.2, 85.0, 95.9, 91.5, 66.9), 86.5, 2234.5, 14.37),
    ("deberta", "lora"): Published((69.1, 90.3, 90.2, 90.9, 94.3, 90.4, 84.0, 96.0, 91.1, 56.3), 85.3, 763.4, 15.62),
    ("deberta", "kd-lora"): Published((68.1, 88.8, 89.0, 90.7, 93.4, 89.9, 78.8, 95.7, 89.8, 56.3), 84.1, 590.3, 10.38),
}
