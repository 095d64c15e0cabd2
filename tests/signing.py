"""Keys and signatures made with `cryptography` alone, as documented: nothing here is imported from kdc."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

TYPE = "application/vnd.in-toto+json"


def make_key(folder: Path, name: str = "key") -> tuple[str, str]:
    """Files with a private and a public key in PEM."""
    folder.mkdir(parents=True, exist_ok=True)
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.pem").write_bytes(pem)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return str(folder / f"{name}.pem"), str(folder / f"{name}.pub")


def statement(artifact: Path, **changes: Any) -> dict[str, Any]:
    content = (artifact / "manifest.json").read_bytes()
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "kdcManifest": json.loads(content)["sha256"]}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "manifest.json", "digest": digest}],
        "predicateType": "urn:kdc:evidence:1",
        "predicate": {},
        **changes,
    }


def authenticated(payload: bytes) -> bytes:
    """What a DSSE signature is over, by the text of its specification."""
    parts = [b"DSSEv1", str(len(TYPE)).encode(), TYPE.encode(), str(len(payload)).encode(), payload]
    return b" ".join(parts)


def envelope(key: str, payload: bytes, signed: bytes | None = None) -> dict[str, Any]:
    """An envelope around a payload; `signed` are other bytes to sign."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private: Any = load_pem_private_key(Path(key).read_bytes(), None)
    sig = private.sign(authenticated(payload) if signed is None else signed)
    encoded = base64.b64encode(payload).decode()
    return {"payload": encoded, "payloadType": TYPE, "signatures": [{"sig": base64.b64encode(sig).decode()}]}


def put_signature(artifact: Path, key: str, **changes: Any) -> bytes:
    """Write `signature.json` into an artifact's folder."""
    content = json.dumps(envelope(key, json.dumps(statement(artifact, **changes)).encode())).encode()
    (artifact / "signature.json").write_bytes(content)
    return content
