"""Replace a model call, from its logged answers to a served student: `python run.py [FOLDER]`. See README.md."""

import argparse
import contextlib
import csv
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.picture import with_colours  # noqa: E402
from benchmarks.serving.stub import in_a_thread  # noqa: E402
from benchmarks.serving.stub_connection import Stub  # noqa: E402
from examples.decisions.hosted import TOPICS, sentences  # noqa: E402
from kdc.artifact.decision import Abstention  # noqa: E402
from kdc.pipeline.report.drawing import FIRST, SECOND, SOFT, styled, svg  # noqa: E402

FRESH = 600  # new to the student
ERRORS = 0.05  # share of the large model's answers
BUDGET = 0.05  # share of differing answers
PORT = int(os.environ.get("PORT", "3111"))
PROMPT = "Which topic is this sentence about? {text}"
QUESTION = {
    "type": "choice",
    "instructions": "Which topic is the sentence about?",
    "criteria": dict.fromkeys(TOPICS, ""),
}
SPEC = f"""text = "sentence"
prompt = "{PROMPT}"

[source]
kind = "chat"
url = "https://api.example.com/v1"
model = "large-1"

[question]
type = "choice"
instructions = "{QUESTION["instructions"]}"
criteria = {{ {", ".join(f'{topic} = ""' for topic in TOPICS)} }}
"""


def kdc(*arguments: str | Path, ends: tuple[int, ...] = (0,)) -> None:
    """Run a command. It ends with 3 or 4 for a verdict other than "pass"."""
    print("\n$ kdc", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "kdc", *map(str, arguments)], stderr=subprocess.STDOUT)
    if done.returncode not in ends:
        sys.exit(f"kdc {arguments[0]} ended with {done.returncode}")


def answers_of_the_model(people: dict[str, str]) -> dict[str, str]:
    dice = random.Random(1)
    return {text: dice.choice(list(TOPICS)) if dice.random() < ERRORS * 4 / 3 else people[text] for text in people}


def write_log(path: Path, answers: dict[str, str]) -> None:
    """Chat completions as an application logs them."""
    with path.open("w", encoding="utf-8") as stream:
        for text, label in answers.items():
            request = {"model": "large-1", "messages": [{"role": "user", "content": PROMPT.format(text=text)}]}
            message = {"role": "assistant", "content": label}
            response = {"model": "large-1-2026", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            stream.write(json.dumps({"request": request, "response": response}) + "\n")


def fill_in(path: Path, people: dict[str, str]) -> None:
    """Write a label into the last column of each row, as people do.

    kdc puts ' before a text that a spreadsheet program would run as a formula.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header, *rows = csv.reader(stream)
    labelled = [[identity, text, people.get(text) or people[text.removeprefix("'")]] for identity, text, _ in rows]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *labelled])


@contextlib.contextmanager
def served(artifact: Path, upstream: str) -> Iterator[str]:
    command = ["serve", f"topics={artifact}", "--upstream", f"{upstream}/v1", "--port", str(PORT)]
    print("\n$ kdc", *command, flush=True)
    environment = {**os.environ, "KDC_STATE_DIR": str(artifact.parent / "state")}
    process = subprocess.Popen([sys.executable, "-m", "kdc", *command], env=environment, stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{PORT}", time.monotonic() + 60
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{url}/readyz").is_success:
                    break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, texts: list[str], answers: dict[str, str]) -> tuple[float, float]:
    """Gives two shares of the texts: answered locally, and answered like the model."""
    sources, same = Counter[str](), 0
    with httpx2.Client() as client:
        for text in texts:
            body = {"model": "large-1", "state": text, "questions": {"topic": QUESTION}}
            reply = client.post(f"{url}/v1/systemone", json=body, timeout=30).raise_for_status()
            sources[reply.headers["x-kdc-source"]] += 1
            same += reply.json()["answers"]["topic"]["choice"] == answers[text]
    print(f"local share: {100 * sources['local'] / len(texts):.1f} % of {len(texts)} new texts", dict(sources))
    print(f"answered unlike the large model: {100 - 100 * same / len(texts):.1f} % of all texts")
    return sources["local"] / len(texts), same / len(texts)


@styled
def draw(run: Path, served: tuple[float, float]) -> str:
    """Agreement with the large model over the share that the student answers; deferred texts agree.

    Args:
        run: folder of `kdc compress`; its report has shares and accuracies of held-out texts.
    """
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))["abstention"]
    curve = [(0.0, 100.0)] + [(100 * share, 100 - 100 * share * (1 - right)) for share, right in report["student"]]
    chosen = Abstention.model_validate(report["abstain"])
    axes = (figure := Figure(figsize=(7.4, 4.2))).subplots()
    axes.plot(*zip(*curve, strict=True), color=FIRST, label="held-out texts, by the threshold")
    axes.axhline(100 - 100 * BUDGET, color=SOFT, linestyle=":", label=f"budget: {100 - 100 * BUDGET:g} % of all texts")
    title = "No threshold is certified to keep the budget"
    if chosen.evaluation is not None and (unlike := chosen.evaluation.disagreement) is not None:
        share, like = 100 * chosen.evaluation.coverage.hits / unlike.of, 100 - 100 * unlike.hits / unlike.of
        axes.plot([share] * 2, [100 - 100 * unlike.low, 100 - 100 * unlike.high], color=SECOND, linewidth=3)
        kind = "certified" if chosen.reached else "uncertified"
        told = f"{kind} threshold {chosen.threshold:.2f}, with a 95 % confidence interval"
        axes.plot([share], [like], "o", color=SECOND, markersize=9, label=told)
        if chosen.reached:
            title = f"The student answers {share:.0f} % of the texts; {like:.0f} % of all answers agree with the model"
    axes.plot(*([100 * value] for value in served), "D", color=FIRST, markersize=7, label=f"{FRESH} new texts, served")
    axes.set(
        title=title, xlabel="texts answered by the student, %", ylabel="answers that agree with the large model, %"
    )
    axes.set(xlim=(0, 102), ylim=(min(like for _, like in curve) - 1, 100.5))
    axes.legend(loc="lower left")
    return with_colours(svg(figure, "agreement", title))


def main(folder: Path, count: int, steps: int) -> None:
    folder.mkdir(parents=True)
    people = sentences()
    answers = answers_of_the_model(people)
    texts = random.Random(0).sample(list(people), min(count, len(people)))
    fresh, logged = texts[:FRESH], texts[FRESH:]
    spec, run = folder / "spec.toml", folder / "run"
    spec.write_text(SPEC, encoding="utf-8")
    for name, some in (("logged", logged), ("fresh", fresh)):
        write_log(folder / f"{name}.jsonl", {text: answers[text] for text in some})
        kdc("label", spec, folder / f"{name}.csv", "--traces", folder / f"{name}.jsonl")
    given = ("--train", folder / "logged.csv", "--teacher-scores", folder / "logged.csv", "--metric", "accuracy")
    made = ("--family", "minilm", "--student", "static", "--set", f"student.min_steps={steps}", "--out", run)
    kdc("compress", *given, *made, "--defer", f"disagreement<={BUDGET}", ends=(0, 3, 4))
    audit, student = folder / "audit.csv", ("--student", run / "artifact")
    kdc("label", spec, folder / "fresh.csv", "--audit", "500", "--to", audit, *student, "--max-drop", "2")
    fill_in(audit, people)
    kdc("label", spec, folder / "fresh.csv", "--audited", audit, *student, "--max-drop", "2", ends=(0, 3, 4))
    table = {text: {topic: float(topic == label) for topic in TOPICS} for text, label in answers.items()}
    with in_a_thread(Stub(table=table)) as upstream, served(run / "artifact", upstream.url) as url:
        served_shares = ask(url, fresh, answers)
    (folder / "agreement.svg").write_text(draw(run, served_shares), encoding="utf-8")
    print(f"the share of local answers against the agreement: {folder / 'agreement.svg'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("replaced"), help="a new folder")
    parser.add_argument("--texts", type=int, default=3356, help=f"logged ones, and {FRESH} new ones")
    parser.add_argument("--steps", type=int, default=600, help="least training steps of the student")
    options = parser.parse_args()
    main(options.folder, options.texts, options.steps)
