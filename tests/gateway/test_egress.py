"""The rule for URLs other people give us (gateway rule G9, "URL")."""

import asyncio
import socket
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.egress import (
    Address,
    Destination,
    EgressGuard,
    EgressRefused,
    EgressRules,
    SystemResolver,
    Unresolved,
    destination,
    embedded_ipv4,
    refusal,
)

PRIVATE = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"),
    st.ip_addresses(network="100.64.0.0/10"),
    st.ip_addresses(network="127.0.0.0/8"),
    st.ip_addresses(network="169.254.0.0/16"),
    st.ip_addresses(network="172.16.0.0/12"),
    st.ip_addresses(network="192.168.0.0/16"),
    st.ip_addresses(network="224.0.0.0/4"),
    st.ip_addresses(network="240.0.0.0/4"),
)


def resolving(*addresses: str) -> EgressGuard:
    return guarded("", *addresses)


def guarded(allow: str, *addresses: str) -> EgressGuard:
    async def resolve(host: str, port: int) -> Sequence[Address]:
        return tuple(ip_address(address) for address in addresses)

    return EgressGuard(EgressRules.parse(allow), resolve)


def is_allowed(guard: EgressGuard, url: str) -> bool:
    try:
        asyncio.run(guard.check_url(url))
    except EgressRefused:
        return False
    return True


# --- addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("0.0.0.0", "this network"),
        ("10.1.2.3", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("169.254.169.254", "link-local"),
        ("168.63.129.16", "cloud metadata"),
        ("100.100.100.200", "carrier-grade NAT"),
        ("192.0.0.192", "reserved"),
        ("198.19.0.1", "reserved"),
        ("239.1.1.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:8.8.8.8", "mapped"),
        ("::8.8.8.8", "mapped"),
        ("64:ff9b::808:808", "mapped"),
        ("64:ff9b:1::1", "mapped"),
        ("2002:808:808::1", "mapped"),
        ("2001:0:808:808::1", "mapped"),
        ("2001:db8::1", "reserved"),
        ("3fff::1", "reserved"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("4000::1", "reserved"),
    ],
)
def test_a_special_address_is_refused_with_its_reason(address: str, reason: str) -> None:
    assert refusal(ip_address(address)) == reason


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "2606:4700::1111"]
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert refusal(ip_address(address)) == ""


@given(st.ip_addresses(v=4))
def test_whatever_python_calls_not_global_is_refused(address: IPv4Address) -> None:
    assume(not address.is_global or address.is_multicast)
    assert refusal(address)


@given(st.ip_addresses(v=6))
def test_whatever_python_calls_not_global_is_refused_in_version_6_too(address: IPv6Address) -> None:
    assume(not address.is_global or address.is_multicast or address.is_reserved or address.is_site_local)
    assert refusal(address)


@given(st.ip_addresses(v=6))
def test_only_global_unicast_of_version_6_is_allowed(address: IPv6Address) -> None:
    assert refusal(address) or address in IPv6Network("2000::/3")


@given(PRIVATE, st.sampled_from(["::", "::ffff:0:0", "64:ff9b::", "2002::"]))
def test_a_private_address_is_refused_however_it_is_wrapped(inner: IPv4Address, prefix: str) -> None:
    shift = 80 if prefix == "2002::" else 0
    wrapped = IPv6Address(int(IPv6Address(prefix)) | (int(inner) << shift))
    assert refusal(wrapped)
    assert embedded_ipv4(wrapped) == inner
    # Opening the prefix itself does not open what hides behind it.
    with pytest.raises(EgressRefused):
        EgressRules.parse("::/96, ::ffff:0:0/96, 64:ff9b::/96, 2002::/16").check("host", wrapped)


def test_a_listed_nat64_prefix_opens_public_addresses() -> None:
    rules = EgressRules.parse("64:ff9b::/96")
    rules.check("host", ip_address("64:ff9b::808:808"))
    with pytest.raises(EgressRefused):
        rules.check("host", ip_address("64:ff9b::7f00:1"))


# --- the text of the URL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://my-service.com/webhook", "my-service.com", 443),
        ("http://Example.COM./x", "example.com", 80),
        ("http://example.com:8080/", "example.com", 8080),
        ("https://example.com:1024/?a=b#c", "example.com", 1024),
        ("https://bücher.example/", "xn--bcher-kva.example", 443),
        ("http://[2606:4700::1111]:8443/", "2606:4700::1111", 8443),
    ],
)
def test_a_plain_url_passes(url: str, host: str, port: int) -> None:
    found = destination(url)
    assert (found.host, found.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:pass@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com:22/",
        "http://example.com:25/",
        "http://example.com:1023/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:port/",
        "http://exa mple.com/",
        "http://example.com/\r\nX-Injected: 1",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1%00.example.com/",
        "http://%31%32%37.0.0.1/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1.0x1/",
        "http://①②⑦.0.0.1/",
        "https://example.com/" + "x" * 2_048,
    ],
)
def test_an_odd_url_is_refused_before_any_look_up(url: str) -> None:
    with pytest.raises(EgressRefused):
        destination(url)


def test_the_length_limit_is_exact() -> None:
    start = "https://example.com/"
    assert destination(start + "x" * (2_048 - len(start))) == Destination("example.com", 443)
    with pytest.raises(EgressRefused, match="longer than 2048"):
        destination(start + "x" * (2_049 - len(start)))


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "http://[", "//"]))
def test_any_text_is_either_a_destination_or_refused(text: str, start: str) -> None:
    try:
        found = destination(start + text)
    except EgressRefused:
        return
    assert found.host == found.host.lower()
    assert found.port in (80, 443) or 1_024 <= found.port <= 65_535


# --- names and the allow-list -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://127。0。0。1/",
    ],
)
def test_a_literal_address_is_checked_without_a_look_up(url: str) -> None:
    assert not is_allowed(resolving("8.8.8.8"), url)


def test_a_name_passes_only_when_every_address_is_public() -> None:
    assert is_allowed(resolving("8.8.8.8", "2606:4700::1111"), "https://example.com/")
    assert not is_allowed(resolving("8.8.8.8", "10.0.0.1"), "https://example.com/")
    assert not is_allowed(resolving(), "https://example.com/")
    assert not is_allowed(resolving(*(f"8.8.8.{n}" for n in range(17))), "https://example.com/")


def test_the_allow_list_opens_names_addresses_and_networks() -> None:
    allow = "Hooks.Internal, 127.0.0.1, 10.20.0.0/16, ::1"
    assert is_allowed(guarded(allow, "10.99.0.1"), "http://hooks.internal:8080/")
    assert is_allowed(guarded(allow), "http://127.0.0.1:9000/")
    assert is_allowed(guarded(allow), "http://[::1]:9000/")
    assert is_allowed(guarded(allow, "10.20.3.4"), "http://other.example/")
    assert not is_allowed(guarded(allow, "10.99.0.1"), "http://other.example/")
    assert not is_allowed(guarded(allow, "10.99.0.1"), "http://sub.hooks.internal/")
    assert not is_allowed(guarded(allow), "http://127.0.0.2:9000/")
    assert not is_allowed(guarded(allow), "http://127.0.0.1:22/")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "a b", "http://x/", "1.2.3.4/33", "x" * 300])
def test_a_faulty_allow_list_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="neither a host name"):
        EgressRules.parse(text)


def test_a_look_up_that_fails_or_hangs_is_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no such name")

    async def check(seconds: float) -> None:
        guard = SystemResolver(seconds)
        try:
            with pytest.raises(Unresolved):
                await guard("example.com", 443)
        finally:
            guard.close()

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    asyncio.run(check(5.0))
    release = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        release.wait(30)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        asyncio.run(check(0.01))
    finally:
        release.set()


def test_the_system_resolver_answers_for_localhost() -> None:
    async def look_up() -> Sequence[Address]:
        resolver = SystemResolver()
        try:
            return await resolver("localhost", 80)
        finally:
            resolver.close()

    assert all(address.is_loopback for address in asyncio.run(look_up()))
