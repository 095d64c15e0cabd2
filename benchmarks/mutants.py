"""Mutation testing: how many small changes of deciding code do its tests notice?

Command: `make mutants`, or `python benchmarks/mutants.py [--only losses,metrics] [--draw 30] [--jobs 2]`. Prints
survivors (some explained in `survivors.md`), and ends with 1 if under 95 % of a module's mutants die.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_QUALITY, _TRAINING, _ENGINE = "tests/pipeline/quality/", "tests/pipeline/training/", "tests/serving/engine/"
_IN_GROUPS = "tests/pipeline/test_thresholds_in_groups.py"
MODULES = {
    "breaker": ("serving/upstream/breaker.py", ["tests/serving/upstream/test_breaker.py"]),
    "address": ("serving/upstream/address.py", ["tests/serving/upstream/test_address.py"]),
    "losses": ("pipeline/training/losses.py", ["tests/pipeline/training/test_losses.py"]),
    "metrics": ("pipeline/config/metrics.py", [f"{_QUALITY}test_metrics.py", f"{_QUALITY}test_intervals.py"]),
    "intervals": (
        "pipeline/quality/intervals.py",
        [f"{_QUALITY}test_intervals.py", "tests/artifact/test_contract.py", f"{_QUALITY}test_verdicts.py"],
    ),
    "unseen": (
        "pipeline/quality/unseen.py",
        [f"{_QUALITY}test_intervals.py", "tests/artifact/test_contract.py"],
    ),
    "bootstrap": (
        "pipeline/quality/bootstrap.py",
        [f"{_QUALITY}test_bootstrap.py", f"{_QUALITY}test_intervals.py"],
    ),
    "judgement": ("artifact/contract/judgement.py", ["tests/artifact/test_contract.py"]),
    "comparison": (
        "pipeline/quality/comparison.py",
        [
            f"{_QUALITY}test_comparison.py",
            "tests/test_python.py",
            "tests/artifact/test_contract.py",
            f"{_QUALITY}test_verdicts.py",
        ],
    ),
    "calibration": (
        "pipeline/quality/calibration.py",
        [f"{_QUALITY}test_calibration.py"],
    ),
    "shares": (
        "pipeline/quality/shares.py",
        [
            f"{_QUALITY}test_shares.py",
            "tests/pipeline/test_abstaining.py",
            "tests/pipeline/test_operating.py",
            _IN_GROUPS,
        ],
    ),
    "operating": (
        "pipeline/quality/operating.py",
        [
            "tests/pipeline/test_operating.py",
            "tests/pipeline/test_abstaining.py",
            "tests/pipeline/test_label_sets.py",
            _IN_GROUPS,
        ],
    ),
    "cascading": ("pipeline/quality/cascading.py", ["tests/pipeline/test_cascade.py"]),
    "decision-rates": (
        "pipeline/quality/decision_rates.py",
        [
            f"{_QUALITY}test_required.py",
            "tests/pipeline/test_operating.py",
            "tests/pipeline/test_abstaining.py",
            "tests/pipeline/test_label_sets.py",
        ],
    ),
    "judging": (
        "pipeline/quality/judging.py",
        [f"{_QUALITY}test_judging.py", "tests/pipeline/test_contract_run.py"],
    ),
    "feasibility": ("pipeline/quality/feasibility.py", [f"{_QUALITY}test_feasibility.py"]),
    "frontier": ("pipeline/quality/frontier.py", ["tests/pipeline/test_frontier.py"]),
    "latency": ("pipeline/quality/latency.py", [f"{_QUALITY}test_latency.py", f"{_QUALITY}test_judging.py"]),
    "decided": (
        "pipeline/evaluation/thresholds.py",
        ["tests/pipeline/test_operating.py", "tests/pipeline/test_abstaining.py", "tests/pipeline/test_untouched.py"],
    ),
    "second": ("pipeline/evaluation/second_model.py", ["tests/pipeline/test_cascade.py"]),
    "cascade": ("pipeline/stages/cascade.py", ["tests/pipeline/test_cascade.py"]),
    "folders": ("pipeline/rundir/folders.py", ["tests/pipeline/rundir/test_folders.py"]),
    "fingerprints": ("pipeline/rundir/fingerprints.py", ["tests/pipeline/rundir/test_fingerprints.py"]),
    "entries": (
        "pipeline/evaluation/entries.py",
        ["tests/pipeline/test_entries.py", "tests/pipeline/test_run.py", "tests/pipeline/test_results.py"],
    ),
    "directory": (
        "pipeline/rundir/directory.py",
        ["tests/pipeline/rundir/test_looks.py", "tests/pipeline/rundir/test_directory.py"],
    ),
    "finetuning": (
        "pipeline/training/finetuning.py",
        [f"{_TRAINING}test_finetuning.py", "tests/pipeline/test_collapse.py"],
    ),
    "students": ("pipeline/training/students.py", [f"{_TRAINING}test_students.py"]),
    "loop": ("pipeline/training/loop.py", [f"{_TRAINING}test_loop.py", f"{_TRAINING}test_checkpoints.py"]),
    "dropout": ("pipeline/training/dropout.py", [f"{_TRAINING}test_dropout.py"]),
    "ensemble": ("pipeline/training/ensemble.py", [f"{_TRAINING}test_ensemble.py"]),
    "schedule": ("pipeline/training/callbacks.py", [f"{_TRAINING}test_schedule.py", f"{_TRAINING}test_loop.py"]),
    "importance": ("pipeline/training/importance.py", ["tests/pipeline/models/test_cutting.py"]),
    "deciding": ("serving/engine/deciding.py", [f"{_ENGINE}test_deciding.py"]),
    "engine": ("serving/engine/engine.py", [f"{_ENGINE}test_engine.py", "tests/serving/test_cascade.py"]),
    "long-texts": ("serving/engine/long_texts.py", ["tests/serving/test_long_texts.py"]),
    "passes": ("serving/engine/passes.py", [f"{_ENGINE}test_engine.py"]),
    "tokenizing": ("serving/engine/tokenizing.py", [f"{_ENGINE}test_tokenizing.py"]),
    "word-pieces": ("serving/engine/word_pieces.py", [f"{_ENGINE}test_word_pieces.py"]),
    "int8-choice": ("pipeline/graphs/int8_choice.py", ["tests/pipeline/graphs/test_int8_choice.py"]),
    "overlap": ("pipeline/data/overlap.py", ["tests/pipeline/data/test_overlap.py"]),
    "splits": (
        "pipeline/data/splits.py",
        [
            "tests/pipeline/data/test_slices.py",
            "tests/pipeline/data/test_overlap.py",
            "tests/pipeline/data/test_prepared.py",
        ],
    ),
    "queue": ("serving/http/queue.py", ["tests/serving/http/test_queue.py"]),
}
_KILLED, _LIVES, _LEAST = 1, 0, 0.95
# Changes that are equivalent here (`is` for `==`), or need arguments.
_SAME = re.compile(r"Operator_(?!Is)\w+_Is(Not)?$|variable-|VariableReplacer|VariableInserter")
# A mutant slower than this counts as endless.
_TIMES, _SECONDS = 3, 20
_TIMES_WAITING, _SECONDS_WAITING = 6, 60  # waiting for other processes
_COLLECT = """
import json, os, sys, pytest
stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[1:]])
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
json.dump(files, stdout)
"""


@dataclass(frozen=True)
class Mutant:
    path: Path
    operator: str  # cosmic-ray's name
    line: int
    before: str
    after: str
    source: str


def mutants_of(path: Path, draw: int | None, seed: int) -> tuple[list[Mutant], int]:
    """Sampled mutants, and the number of all changes."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    code = path.read_text(encoding="utf-8")
    tree, lines, inert = get_ast(code), code.splitlines(), _inert_lines(code)
    changes = []
    for name in sorted(operator_names()):
        if _SAME.search(name):
            continue
        operator = get_operator(name)()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        changes += [(name, index, line) for index, ((line, _), _) in enumerate(places) if line not in inert]
    mutants: list[Mutant] = []
    for name, index, line in random.Random(seed).sample(changes, len(changes)):
        if len(mutants) == draw:
            break
        changed = mutate_code(code, get_operator(name)(), index)
        if changed is None:
            continue
        try:
            compile(changed, str(path), "exec")
        except SyntaxError:
            continue
        after = changed.splitlines()
        mutants.append(Mutant(path, name, line, lines[line - 1].strip(), after[line - 1].strip(), changed))
    return mutants, len(changes)


def _inert_lines(code: str) -> set[int]:
    inert: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            inert |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inert |= set(range(node.lineno, node.body[0].lineno))
        elif isinstance(node, ast.ClassDef):
            inert |= {decorator.lineno for decorator in node.decorator_list}  # dataclass(frozen=True, slots=True)
        elif isinstance(node, ast.AnnAssign) and node.value is None:
            inert |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            inert.add(node.lineno)  # a type alias
    return inert


def outcome(mutant: Mutant, tests: list[str], seconds: Path) -> int:
    """`_LIVES` if the tests pass. The first run writes the tests' times to `seconds`."""
    child = os.fork()
    if child == 0:
        code = _KILLED
        try:
            code = _run(mutant, tests, seconds)
        except BaseException:  # noqa: BLE001 - whatever it is, the change was noticed
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _run(mutant: Mutant, tests: list[str], seconds: Path) -> int:
    import pytest

    took = json.loads(seconds.read_text()) if seconds.exists() else {}
    if took:
        signal.setitimer(signal.ITIMER_PROF, _TIMES * sum(took.values()) + _SECONDS)
        signal.setitimer(signal.ITIMER_REAL, _TIMES_WAITING * sum(took.values()) + _SECONDS_WAITING)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    as_it_is = SourceFileLoader.get_code

    def get_code(loader: Any, name: str) -> Any:
        if Path(loader.path).resolve() == mutant.path:
            return compile(mutant.source, loader.path, "exec")
        return as_it_is(loader, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    order = _QuickFirst(took)
    status = pytest.main(arguments, plugins=[order])
    if not took:
        seconds.write_text(json.dumps(order.took))
    return _LIVES if status == 0 else _KILLED


class _QuickFirst:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.took = seconds, dict[str, float]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: (self._shares(item), self.seconds.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.took[report.nodeid] = self.took.get(report.nodeid, 0.0) + report.duration

    @staticmethod
    def _shares(item: Any) -> bool:
        fixtures = [fixture for same in item._fixtureinfo.name2fixturedefs.values() for fixture in same]
        return any(fixture.baseid and fixture.scope != "function" for fixture in fixtures)


def _load_libraries(tests: list[str]) -> None:
    done = subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", _COLLECT, *tests], stdout=subprocess.PIPE)
    for name, file in json.loads(done.stdout).items():
        is_library = file and ("site-packages" in file or not Path(file).resolve().is_relative_to(ROOT))
        if is_library:
            with suppress(Exception):  # some refuse this
                importlib.import_module(name)
    gc.freeze()  # or pytest's garbage collections take half the time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MODULES))
    parser.add_argument("--draw", type=int, help="so many mutants of each module, at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    os.chdir(ROOT)
    _load_libraries(sorted({test for name in options.only.split(",") for test in MODULES[name][1]}))
    is_weak = False
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            is_weak |= _of_module(name, options, Path(folder) / "seconds.json") < _LEAST
    return int(is_weak)


def _of_module(name: str, options: argparse.Namespace, seconds: Path) -> float:
    file, tests = MODULES[name]
    source = (ROOT / file).read_text(encoding="utf-8")
    if outcome(Mutant(ROOT / file, "none", 0, "", "", source), tests, seconds) != _LIVES:
        print(f"{name}: its tests fail on the file as it is, so no mutant says anything", flush=True)
        return 0.0
    chosen, every = mutants_of(ROOT / file, options.draw, options.seed)
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(partial(outcome, tests=tests, seconds=seconds), chosen))
    alive = [mutant for mutant, code in zip(chosen, found, strict=True) if code == _LIVES]
    died = 1 - len(alive) / len(chosen)
    print(f"{name}: {100 * died:.0f} % of {len(chosen)} mutants died (there are {every})", flush=True)
    for mutant in sorted(alive, key=lambda mutant: mutant.line):
        print(f"  {file}:{mutant.line}: {mutant.before}\n    lives as: {mutant.after}", flush=True)
    return died


if __name__ == "__main__":
    sys.exit(main())
