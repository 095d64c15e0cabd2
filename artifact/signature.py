"""Signs artifacts: `signature.json` beside the manifest says who vouches for which manifest.

It is a DSSE envelope (github.com/secure-systems-lab/dsse, version 1) around an in-toto Statement v1
(in-toto.io/Statement/v1), signed with Ed25519. The statement names the manifest's SHA-256, and the manifest has the
SHA-256 of every file.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdc.artifact.folder import opened
from kdc.artifact.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from kdc.common.errors import InputError, installing

Keys = Sequence[str] | None  # public keys: PEM files or env:NAME; None: no signature is needed
MAX_SIGNATURE_BYTES = 64 * 1024
VARIABLE = "env:"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_PREDICATE_TYPE = "urn:kdc:evidence:1"
_EVIDENCE: Any = {"kdc_version": True, "created": True, "task": {"name"}, "lineage": True, "contract": {"verdict"}}
_MOST_SIGNATURES = 8
_SIGN = "`kdc push ARTIFACT PLACE --sign KEY` signs it"


def sign(manifest: Manifest, content: bytes, key: str) -> bytes:
    """The content of `signature.json`. The same artifact and key give the same bytes.

    Args:
        content: of `manifest.json`.
        key: PEM file with the private key, or env:NAME.

    Raises:
        InputError: the key is no Ed25519 key, or the package `cryptography` is missing.
    """
    private = _key(key, private=True)
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "kdcManifest": manifest.sha256}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": MANIFEST_NAME, "digest": digest}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": manifest.model_dump(mode="json", include=_EVIDENCE),
    }
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    sig = base64.b64encode(private.sign(_signed_bytes(payload))).decode()
    signatures = [{"keyid": key_id(private.public_key()), "sig": sig}]
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": _PAYLOAD_TYPE, "signatures": signatures}
    return json.dumps(envelope, sort_keys=True).encode() + b"\n"


def signed_sha256(signature: bytes | None, keys: Keys, place: object, expected: str | None = None) -> str | None:
    """The SHA-256 that a manifest must have: as one of the keys signed it, and as expected.

    Raises:
        InputError: no key signed it, it is damaged, a key is wrong, or both SHA-256 differ.
    """
    if keys is None:
        return expected
    public = [_key(key, private=False) for key in keys]
    if signature is None:
        raise InputError("the artifact has no signature", given=f"{place}: no {SIGNATURE_NAME}", remedy=_SIGN)
    signed = _verified(signature, public, f"{place}/{SIGNATURE_NAME}")
    if expected is not None and expected.strip().lower() != signed:
        given, remedy = f"{place}: signed {signed}, expected {expected}", "pass the SHA-256 of the signed artifact"
        raise InputError("the signature is of another artifact than the one expected", given=given, remedy=remedy)
    return signed


def signed_sha256_of(folder: Path, keys: Keys, expected: str | None = None) -> str | None:
    return expected if keys is None else signed_sha256(read_signature(folder), keys, folder, expected)


def read_signature(folder: Path) -> bytes | None:
    """The content of `signature.json`, cut if it is too large; None if there is none."""
    try:
        with opened(folder / SIGNATURE_NAME) as file:
            return file.read(MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        return None


def key_id(key: Any) -> str:
    """The SHA-256 that `openssl pkey -pubin -outform DER | sha256sum` prints."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _verified(signature: bytes, keys: Sequence[Any], where: str) -> str:
    from cryptography.exceptions import InvalidSignature

    try:
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise ValueError
        envelope = json.loads(signature)
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
        if envelope["payloadType"] != _PAYLOAD_TYPE or len(signatures) > _MOST_SIGNATURES:
            raise ValueError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InputError("the artifact's signature is damaged", given=where, remedy=_SIGN) from None
    for key, each in itertools.product(keys, signatures):
        with contextlib.suppress(InvalidSignature):
            key.verify(each, _signed_bytes(payload))
            return _manifest_sha256(payload, where)
    remedy = f"check where it comes from, and the keys {', '.join(key_id(key)[:16] for key in keys)}"
    raise InputError("no given key signed this artifact", given=where, remedy=remedy)


def _manifest_sha256(payload: bytes, where: str) -> str:
    """The manifest's own SHA-256. The key may sign other documents too."""
    try:
        statement = json.loads(payload)
        (subject,) = statement["subject"]
        if statement["predicateType"] == _PREDICATE_TYPE:
            return str(subject["digest"]["kdcManifest"])
        raise LookupError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InputError("the key signed something else than an artifact of kdc", given=where, remedy=_SIGN) from None


def _signed_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which separates this use of the key from others."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _key(place: str, *, private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ModuleNotFoundError:
        raise InputError("signatures need one more package", given="cryptography", remedy=installing("sign")) from None
    kind: Any = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    command = "genpkey -algorithm ed25519 -out key.pem" if private else "pkey -in key.pem -pubout -out key.pub"
    remedy = f"name a PEM file without a password, or {VARIABLE}VARIABLE; `openssl {command}` makes the file"
    shown = "the key itself" if "-----" in place else place  # messages must not show a key
    try:
        is_file = not place.startswith(VARIABLE)
        content = Path(place).read_bytes() if is_file else os.environ.get(place.removeprefix(VARIABLE), "").encode()
        key: Any = load_pem_private_key(content, password=None) if private else load_pem_public_key(content)
    except OSError as error:
        raise InputError(f"the key cannot be read: {error.strerror}", given=shown, remedy=remedy) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        key = None
    if not isinstance(key, kind):
        raise InputError(f"this is no {kind.__name__}", given=shown, remedy=remedy)
    return key
