"""The upstream's address: only what the operator wrote, and never a private network by a public name."""

import asyncio
from typing import Any

import aiohttp
import pytest

from kdc.common.errors import InputError
from kdc.serving.upstream.address import PublicResolver, base_url, is_plain_text, networks


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/v1/", "https://api.example.com"),
        ("http://127.0.0.1:9000/proxy/v1", "http://127.0.0.1:9000/proxy"),
        ("http://[::1]:9000/", "http://[::1]:9000"),
    ],
)
def test_the_part_before_v1_is_kept(given: str, base: str) -> None:
    assert base_url(given) == base


@pytest.mark.parametrize(
    "given",
    [
        *("ftp://a", "api.example.com", "https://", "http://a:99999", "https://a/?q=1", "https://a/#b"),
        *("https://user:S3CRET@a/", "https://a\n.b", "https://ä.example"),
    ],
)
def test_what_is_no_plain_address_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(InputError) as refused:
        base_url(given)
    assert "S3CRET" not in str(refused.value) + str(refused.value.given)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputError):
        networks("10.0.0.0/8,all")


def resolved(monkeypatch: pytest.MonkeyPatch, host: str, *addresses: str, allowed: str = "") -> list[str]:
    async def found(*_: Any) -> list[Any]:
        return [
            {"hostname": host, "host": address, "port": 443, "family": 0, "proto": 0, "flags": 0}
            for address in addresses
        ]

    async def ask() -> list[str]:
        return [each["host"] for each in await PublicResolver(networks(allowed)).resolve(host, 443)]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", found)
    return asyncio.run(ask())


def test_a_name_leads_to_its_public_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch, "a", "10.0.0.1", "93.184.216.34", "::1", "2606:2800::1") == [
        "93.184.216.34",
        "2606:2800::1",
    ]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"],
)
def test_a_name_that_leads_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name in ("a", "z"):
        with pytest.raises(OSError, match="private"):
            resolved(monkeypatch, name, address)


def test_the_operator_can_allow_a_private_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch, "a", "10.1.2.3", allowed="10.0.0.0/8") == ["10.1.2.3"]
    with pytest.raises(OSError, match="private"):
        resolved(monkeypatch, "a", "192.168.0.1", allowed="10.0.0.0/8")


def test_localhost_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch, "localhost", "127.0.0.1") == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("url", "is_plain"),
    [
        *(("http://a", True), ("http://z", True), ("http://10.0.0.1/v1", True)),
        *(("http://localhost:1", False), ("http://127.0.0.1:1/v1", False), ("http://[::1]", False)),
        *(("https://a", False), ("https://10.0.0.1", False)),
    ],
)
def test_a_key_crosses_a_network_unencrypted_by_http_to_another_machine(url: str, is_plain: bool) -> None:
    assert is_plain_text(url) == is_plain
