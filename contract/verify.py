"""`kdc verify`: judge an artifact again, on the machine at hand. Another one means another latency, and can mean other
int8 arithmetic.

Reads the artifact, and a labelled file where one is given. Hashes, size and latency need no more than the serving
install; the metric needs the compress extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifact import Device, Manifest, load_manifest
from contract.costs import rows_of, rows_to_time
from contract.given import replace
from contract.judge import judge, load
from contract.terms import Contract, Judgement
from errors import InputError

_LENGTHS = (8, 16, 32, 64)  # of an artifact without a contract, whose rows nobody knows


def verify_artifact(
    artifact: Path,
    *,
    given: Mapping[str, Any],
    data: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    teacher: str | None = None,
    device: Device = "cpu",
    expect_sha256: str | None = None,
) -> tuple[Judgement, Judgement | None]:
    """Check hashes, then judge by the artifact's own contract.

    Args:
        artifact: its folder.
        given: what is put in place of the contract's, or makes one: see `contract.given.replace`.
        data: labelled rows; those that the artifact was evaluated on need no teacher.
        columns: text, text_pair, label, separator of that file, where they are named otherwise.
        teacher: path of the teacher, for other rows.
        device: "cpu", "cuda" or "auto".
        expect_sha256: refuse any other manifest.

    Returns:
        The judgement of now, and the one that the artifact carries.

    Raises:
        InputError: no contract and no limit, a file that does not fit, or rows that need a teacher.
        KdcError: the artifact is damaged.
    """
    manifest = load_manifest(artifact, expect_sha256=expect_sha256)
    contract = _contract(manifest, given, artifact)
    engine = load(artifact, contract, device)
    before = manifest.contract
    if data is None:
        lengths = [contract.at.length] if contract.at.length else list(before.lengths if before else _LENGTHS)
        rows = rows_of([min(length, manifest.max_length) for length in lengths], engine)
        return judge(engine, contract, rows, None), before
    from pipeline.again import compare_again

    texts, quality = compare_again(artifact, engine, contract, data, columns or {}, teacher)
    return judge(engine, contract, rows_to_time(engine, texts, contract.at), quality), before


def _contract(manifest: Manifest, given: Mapping[str, Any], artifact: Path) -> Contract:
    """The artifact's, with what was given in its place."""
    contract = replace(manifest.contract.contract if manifest.contract is not None else Contract(), given)
    if not contract.limits.any:
        raise InputError(
            "the artifact has no contract", given=artifact,
            remedy="say what must hold: --max-latency-ms 5, --max-size-mb 25, --max-drop 1, --min-rows-per-s 500",
        )  # fmt: skip
    return contract
