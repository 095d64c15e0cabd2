"""Signatures of artifacts, checked against `openssl`, and against envelopes made without kdc."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transfers
from bag_models import write_artifact
from signing import authenticated, envelope, make_key, put_signature, statement

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.folder import load_manifest
from kdc.artifact.signature import MAX_SIGNATURE_BYTES, read_signature, sign, signed_sha256_of
from kdc.common.errors import InputError, KdcError

Json = dict[str, Any]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return make_key(tmp_path / "keys")


def signed(artifact: Path, key: str) -> bytes:
    return sign(load_manifest(artifact), (artifact / "manifest.json").read_bytes(), key)


def refused(artifact: Path, *keys: str) -> KdcError:
    """The error, which says what was wrong, the value and the remedy."""
    with pytest.raises(KdcError) as caught:
        signed_sha256_of(artifact, keys)
    assert caught.value.given
    assert caught.value.remedy
    return caught.value


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_finds_the_signature_right(artifact: Path, keys: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    private, public = str(tmp_path / "key" / "a.pem"), str(tmp_path / "key" / "a.pub")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    document = json.loads(signed(artifact, private))
    payload = base64.b64decode(document["payload"])
    (tmp_path / "signed").write_bytes(authenticated(payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(document["signatures"][0]["sig"]))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-sigfile", str(tmp_path / "sig")]
    for key, code in ((public, 0), (keys[1], 1)):
        done = subprocess.run(
            [*check, "-inkey", key, "-in", str(tmp_path / "signed")], capture_output=True, check=False
        )
        assert done.returncode == code
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], capture_output=True, check=True
    )
    assert document["signatures"][0]["keyid"] == hashlib.sha256(der.stdout).hexdigest()


def test_the_statement_names_the_bytes_of_the_manifest_and_how_it_was_made(
    artifact: Path, keys: tuple[str, str]
) -> None:
    document = json.loads(base64.b64decode(json.loads(signed(artifact, keys[0]))["payload"]))
    predicate = document.pop("predicate")
    assert {**document, "predicate": {}} == statement(artifact)
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    assert predicate == {name: manifest[name] for name in ("kdc_version", "created", "lineage", "contract")} | {
        "task": {"name": manifest["task"]["name"]}
    }
    assert predicate["lineage"]["data_fingerprint"]
    assert signed(artifact, keys[0]) == signed(artifact, keys[0])


def test_the_statement_holds_the_verdict_alone_of_the_contract(artifact: Path, keys: tuple[str, str]) -> None:
    facts: Json = {"verdict": "not shown", "variant": "int8"}
    judged = Judgement.model_construct(**facts)
    manifest = load_manifest(artifact).model_copy(update={"contract": judged})
    document = json.loads(sign(manifest, b"", keys[0]))
    predicate = json.loads(base64.b64decode(document["payload"]))["predicate"]
    assert predicate["contract"] == {"verdict": "not shown"}


def test_an_envelope_made_elsewhere_is_accepted(artifact: Path, keys: tuple[str, str]) -> None:
    put_signature(artifact, keys[0])
    assert signed_sha256_of(artifact, [keys[1]]) == load_manifest(artifact).sha256


def test_any_of_several_keys_and_signatures_is_enough(artifact: Path, keys: tuple[str, str], tmp_path: Path) -> None:
    new, stranger = make_key(tmp_path / "keys", "new"), make_key(tmp_path / "keys", "stranger")
    first, second = (json.loads(put_signature(artifact, private)) for private in (keys[0], new[0]))
    for each in (keys, new):
        put_signature(artifact, each[0])
        signed_sha256_of(artifact, [keys[1], new[1]])
    both = first | {"signatures": first["signatures"] + second["signatures"]}
    (artifact / "signature.json").write_text(json.dumps(both))
    for each in (keys, new):
        signed_sha256_of(artifact, [each[1]])
    assert "no given key" in refused(artifact, stranger[1]).what


def test_a_missing_a_strange_and_an_old_signature_are_refused(
    artifact: Path, keys: tuple[str, str], tmp_path: Path
) -> None:
    assert "has no signature" in refused(artifact, keys[1]).what
    other = write_artifact(tmp_path / "other", scale=2.0)
    put_signature(artifact, make_key(tmp_path / "keys", "stranger")[0])
    assert "no given key" in refused(artifact, keys[1]).what
    put_signature(other, keys[0])
    shutil.copy(other / "signature.json", artifact)
    expected = signed_sha256_of(artifact, [keys[1]])
    with pytest.raises(InputError, match="not the artifact that was expected"):
        load_manifest(artifact, expect_sha256=expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: b"",
        lambda e: b"\xff\xfe",
        lambda e: b"[" * 50_000,
        lambda e: b"[]",
        lambda e: b"null",
        lambda e: b'"text"',
        lambda e: {},
        lambda e: e | {"payload": 1},
        lambda e: e | {"payload": e["payload"] + "\n"},
        lambda e: e | {"payloadType": "text/plain"},
        lambda e: e | {"signatures": {}},
        lambda e: e | {"signatures": [1]},
        lambda e: e | {"signatures": "sig"},
        lambda e: e | {"signatures": [{"sig": "é"}]},
        lambda e: e | {"signatures": e["signatures"] * 9},
        lambda e: json.dumps(e).encode() + b" " * MAX_SIGNATURE_BYTES,
    ],
)
def test_a_damaged_signature_is_refused(
    artifact: Path, keys: tuple[str, str], spoil: Callable[[Json], bytes | Json]
) -> None:
    content = spoil(json.loads(put_signature(artifact, keys[0])))
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    (artifact / "signature.json").write_bytes(content)
    error = refused(artifact, keys[1])
    assert error.what in ("the artifact's signature is damaged", "no given key signed this artifact")
    assert error.given == f"{artifact}/signature.json"


@pytest.mark.parametrize("sig", ["", "AAAA", base64.b64encode(bytes(64)).decode()])
def test_bytes_that_are_no_signature_are_refused(artifact: Path, keys: tuple[str, str], sig: str) -> None:
    document = json.loads(put_signature(artifact, keys[0]))
    (artifact / "signature.json").write_text(json.dumps(document | {"signatures": [{"sig": sig}]}))
    assert "no given key" in refused(artifact, keys[1]).what


def test_a_changed_statement_is_refused(artifact: Path, keys: tuple[str, str], tmp_path: Path) -> None:
    document = json.loads(put_signature(artifact, keys[0]))
    other = json.dumps(statement(write_artifact(tmp_path / "other", scale=2.0))).encode()
    changed = document | {"payload": base64.b64encode(other).decode()}
    (artifact / "signature.json").write_text(json.dumps(changed))
    assert "no given key" in refused(artifact, keys[1]).what


def test_a_signature_over_other_bytes_than_dsse_names_is_refused(artifact: Path, keys: tuple[str, str]) -> None:
    """The key may sign messages of another protocol: their signatures must not count here."""
    payload = json.dumps(statement(artifact)).encode()
    for message in (payload, authenticated(payload)[:-1], authenticated(payload).replace(b"DSSEv1", b"DSSEv2")):
        (artifact / "signature.json").write_text(json.dumps(envelope(keys[0], payload, message)))
        assert "no given key" in refused(artifact, keys[1]).what


@pytest.mark.parametrize(
    "changes",
    [
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": []},
        {"subject": [{"name": "a", "digest": {"sha256": "0"}}]},
        {"subject": [{"digest": {"kdcManifest": "0"}}, {"digest": {"kdcManifest": "1"}}]},
        {"subject": 1},
    ],
)
def test_another_statement_by_the_same_key_is_refused(artifact: Path, keys: tuple[str, str], changes: Json) -> None:
    put_signature(artifact, keys[0], **changes)
    assert "something else" in refused(artifact, keys[1]).what


def test_a_signature_that_is_no_regular_file_is_refused_at_once(artifact: Path, keys: tuple[str, str]) -> None:
    os.mkfifo(artifact / "signature.json")
    assert "no regular file" in refused(artifact, keys[1]).what


def test_of_an_endless_signature_only_the_bound_is_read(artifact: Path) -> None:
    with (artifact / "signature.json").open("wb") as file:
        file.truncate(10**8)
    content = read_signature(artifact)
    assert content is not None
    assert len(content) == MAX_SIGNATURE_BYTES + 1


def test_the_signed_and_the_expected_artifact_must_be_the_same(artifact: Path, keys: tuple[str, str]) -> None:
    put_signature(artifact, keys[0])
    sha256 = load_manifest(artifact).sha256
    assert signed_sha256_of(artifact, [keys[1]], sha256.upper()) == sha256
    with pytest.raises(InputError, match="another artifact"):
        signed_sha256_of(artifact, [keys[1]], "0" * 64)
    assert signed_sha256_of(artifact, None, "0" * 64) == "0" * 64


def test_no_keys_at_all_accept_nothing(artifact: Path, keys: tuple[str, str]) -> None:
    """Would catch an empty list that is taken for None, which asks for no signature."""
    put_signature(artifact, keys[0])
    assert "no given key" in refused(artifact).what


def test_a_variable_may_hold_the_key(artifact: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNER", Path(keys[0]).read_text())
    monkeypatch.setenv("CHECKER", Path(keys[1]).read_text())
    (artifact / "signature.json").write_bytes(signed(artifact, "env:SIGNER"))
    assert signed_sha256_of(artifact, ["env:CHECKER"]) == load_manifest(artifact).sha256
    monkeypatch.setenv("CHECKER", "")
    for name in ("CHECKER", "NOT_THERE"):
        assert refused(artifact, f"env:{name}").given == f"env:{name}"


def test_what_is_no_ed25519_key_is_refused_and_never_shown(
    artifact: Path, keys: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    private: Any = load_pem_private_key(Path(keys[0]).read_bytes(), None)
    locked = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    wrong = rsa.generate_private_key(65537, 2048)
    rsa_pem = wrong.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for content in (locked, rsa_pem, Path(keys[1]).read_bytes(), b"", b"-----BEGIN PRIVATE KEY-----\nAAAA"):
        (tmp_path / "wrong.pem").write_bytes(content)
        for place in (str(tmp_path / "wrong.pem"), str(tmp_path / "no file"), str(tmp_path)):
            with pytest.raises(InputError) as caught:
                signed(artifact, place)
            assert caught.value.given == place
            assert "openssl genpkey" in str(caught.value)
    put_signature(artifact, keys[0])
    assert "Ed25519PublicKey" in refused(artifact, keys[0]).what
    secret = Path(keys[0]).read_text()
    monkeypatch.setenv("SIGNER", secret.replace("-----BEGIN", "-----BEGUN"))
    for place in (secret, "env:" + secret, "env:SIGNER"):
        with pytest.raises(InputError) as caught:
            signed(artifact, place)
        assert secret.splitlines()[1] not in str(caught.value)


def test_the_package_is_needed_only_for_signatures(artifact: Path) -> None:
    code = (
        "import sys\nsys.modules['cryptography'] = None\nfrom pathlib import Path\n"
        "from kdc.artifact.signature import signed_sha256_of\nfrom kdc.artifact.stores import transfer\n"
        "signed_sha256_of(Path(sys.argv[1]), None)\n"
        "try:\n    signed_sha256_of(Path(sys.argv[1]), ['key'])\nexcept Exception as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact)], capture_output=True, text=True, check=True)
    assert "kdc[sign]" in done.stdout


def test_inspect_says_that_a_given_key_signed(artifact: Path, keys: tuple[str, str], tmp_path: Path) -> None:
    new = make_key(tmp_path / "keys", "new")
    place = str(artifact)
    refusal = transfers.kdc("inspect", place, "--verify-key", keys[1])
    assert refusal.returncode == 2
    assert "remedy: `kdc push" in refusal.stderr
    # A local artifact is signed by a push onto itself.
    pushed = transfers.kdc("push", place, place, "--sign", keys[0])
    assert pushed.returncode == 0, pushed.stderr
    assert "signed" not in transfers.kdc("inspect", place).stdout
    done = transfers.kdc("inspect", place, "--verify-key", new[1], "--verify-key", keys[1])
    assert done.stdout.splitlines()[-1] == "signed by a given key"
    assert transfers.kdc("inspect", place, "--verify-key", new[1]).returncode == 2
    assert transfers.kdc("inspect", place, "--verify-key", "").returncode == 2
    pulled = transfers.kdc("pull", place, str(tmp_path / "copy"), "--verify-key", keys[1])
    assert "signed by a given key" in pulled.stdout
    assert transfers.kdc("pull", place, str(tmp_path / "another"), "--verify-key", new[1]).returncode == 2
