"""`make sbom`, as far as it can be seen without a package registry."""

import shutil
import subprocess
import tomllib

import pytest
from live import ROOT


@pytest.fixture(scope="module")
def recipe() -> list[str]:
    """What `make sbom` would run, a command an entry."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", "sbom"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ").splitlines()


def test_it_lists_a_fresh_environment_of_the_base_install_by_a_tool_that_is_not_in_it(recipe: list[str]) -> None:
    install = next(line for line in recipe if "pip --python" in line)
    assert install == ".venv-sbom/bin/python -m pip --python .venv-serving/bin/python install ."
    assert any(line.startswith("rm -rf .venv-serving ") for line in recipe[: recipe.index(install)])
    listed = next(line for line in recipe if "cyclonedx-py environment" in line)
    assert listed.split()[-1] == ".venv-serving/bin/python"
    for option in ("--output-reproducible", "--validate", "--output-format JSON", "--output-file dist/sbom.cdx.json"):
        assert option in listed


def test_the_tool_is_given_the_project_without_its_extras(recipe: list[str]) -> None:
    """sed ends at the first empty line, so there must be none among the extras."""
    command = next(line for line in recipe if line.startswith("sed ")).rpartition(" > ")[0]
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    del wanted["project"]["optional-dependencies"]
    assert tomllib.loads(done.stdout) == wanted
