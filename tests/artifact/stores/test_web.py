"""`kdc pull` from web servers: which redirects it follows, and what it says when a server does not answer."""

import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import transfers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kdc.artifact.stores import hub
from kdc.artifact.stores.transfer import pull_artifact
from kdc.common import places, web
from kdc.common.errors import KdcError
from kdc.serving.bulk.inputs import read_windows


@contextlib.contextmanager
def answering(
    host: str, location: str = "", status: int = 404, tls: ssl.SSLContext | None = None
) -> Iterator[list[str]]:
    """A web server with one answer to every request, with a redirect if it has a location. The list begins with its
    port; each request adds its path."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(status)
            if location:
                self.send_header("Location", location + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        seen.append(str(server.server_address[1]))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield seen
        server.shutdown()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_server_of_the_internet_leads_to_none_of_this_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "is_inside", lambda address: address != "127.0.0.2")  # that one stands for the internet
    with answering("127.0.0.1") as target, answering("127.0.0.2", f"http://{name}:{target[0]}", 302) as server:
        with pytest.raises(KdcError, match="which is private"):
            pull_artifact(f"http://127.0.0.2:{server[0]}/mood", tmp_path / "copy")
        assert len(server) > 1
        assert len(target) == 1
        with pytest.raises(KdcError, match="no artifact here"):  # one of this machine may lead there
            pull_artifact(f"http://127.0.0.1:{target[0]}/mood", tmp_path / "copy")


def test_a_server_of_this_machine_may_lead_to_another_one_of_it(tmp_path: Path) -> None:
    with answering("127.0.0.1") as target, answering("127.0.0.1", f"http://localhost:{target[0]}", 302) as server:
        with pytest.raises(KdcError, match="no artifact here"):
            pull_artifact(f"http://127.0.0.1:{server[0]}/mood", tmp_path / "copy")
        assert "/mood/manifest.json" in target


def test_a_redirect_from_https_to_http_is_not_followed(tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate(tmp_path / "both.pem"))
    with answering("127.0.0.1") as target, answering("127.0.0.1", f"http://127.0.0.1:{target[0]}", 302, tls) as server:
        address = f"https://127.0.0.1:{server[0]}/mood"
        done = transfers.kdc("pull", address, str(tmp_path / "copy"), SSL_CERT_FILE=str(tmp_path / "both.pem"))
        assert done.returncode == 1
        assert "a redirect goes from https to http" in done.stderr
        assert len(server) > 1
        assert len(target) == 1


def certificate(path: Path) -> Path:
    """A key and a certificate for 127.0.0.1, signed by itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, names = datetime.datetime.now(datetime.UTC), [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    with path.open("ab") as file:
        file.write(signed.public_bytes(encoding))
    return path


def test_the_hub_leads_to_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"hub": "52.0.0.1", "cdn": "52.0.0.2", "trap": "169.254.169.254"}

    def resolved(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if name not in places:
            raise socket.gaierror("no such name")
        return [(0, 0, 0, "", (places[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    for name in ("hub", "cdn", "unknown"):  # a name that only a proxy resolves is left to it
        hub._check_safe(f"https://{name}/file", "https://hub")
    with pytest.raises(KdcError, match="private address"):
        hub._check_safe("https://trap/file", "https://hub")
    hub._check_safe("https://trap/file", "https://trap")  # whoever sets HF_ENDPOINT means it


INSIDE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1%eth0"]


@pytest.mark.parametrize("address", [*INSIDE, "fd00::1", "::ffff:127.0.0.1"])
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert web.is_inside(address)
    assert not web.is_inside("52.0.0.1")
    assert not web.is_inside("2600:1f18::1")


@pytest.mark.parametrize("status", [None, 403, 500])
def test_a_server_that_does_not_answer_is_not_taken_for_an_empty_one(status: int | None, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        port = "1" if status is None else stack.enter_context(answering("127.0.0.1", status=status))[0]
        with pytest.raises(KdcError, match="the store refused, or did not answer") as caught:
            pull_artifact(f"http://127.0.0.1:{port}/mood", tmp_path / "copy")
        assert "check the name, the network" in caught.value.remedy
        assert str(status or "Connect call failed") in str(caught.value)


@pytest.mark.parametrize("page", [False, True])
def test_a_server_that_sends_without_end_is_not_read_into_memory(page: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch fsspec, which reads an answer to a range, and a page that may list files, whatever their size."""
    monkeypatch.setattr(web, "_MOST_AT_ONCE", 1 << 20)
    sent = 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()

        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(206 if "Range" in self.headers else 200)
            if not page:
                self.send_header("Content-Type", "text/csv")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    sent += self.wfile.write(bytes(1 << 20))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/rows.csv"
        (file,) = places.find(address)
        windows = read_windows(file)
        with pytest.raises(KdcError, match="more than the 100 bytes"):
            next(windows)
        server.shutdown()
    assert sent < 50 << 20
