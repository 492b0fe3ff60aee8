"""What this installation may be made to call: the rule for URLs other people give us.

A callback URL, or the URL of an HTTP node, names a place the caller chose; without a rule the caller could
reach what only this machine can reach. The rule (gateway rule G9) has two halves: the text of the URL, and
every address its host resolves to. Both are checked when a URL is stored, and again by the transport when
it is called, on the very addresses that are then dialled, so a name that turns private in between is
refused (see ``egress_transport``).

The tables follow the IANA special-purpose address registries (IPv4 and IPv6, 2025). They are written out
because ``ipaddress.is_global`` differs between Python releases.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx
import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_CHARS_MAX = 2_048
ADDRESSES_MAX = 16
"""Addresses of one name that are looked at; a name with more is refused."""

RESOLVE_SECONDS = 5.0
RESOLVER_THREADS = 4
"""Look-ups at a time. They have threads of their own: one that hangs must not hold up disk work."""

PORTS = frozenset({80, 443})
PORT_FIRST_UNPRIVILEGED = 1_024

_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud metadata"),  # Azure's host, on a public address
        ("169.254.0.0/16", "link-local"),  # most clouds' metadata service
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "reserved"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "mapped"),
        ("::ffff:0:0/96", "mapped"),
        ("::ffff:0:0:0/96", "mapped"),
        ("64:ff9b::/96", "mapped"),  # NAT64
        ("64:ff9b:1::/48", "mapped"),
        ("2001::/32", "mapped"),  # Teredo
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "reserved"),
        ("2002::/16", "mapped"),  # 6to4
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "reserved"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_EMBEDDING = (
    (IPv6Network("::/96"), 0),
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::ffff:0:0:0/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("2002::/16"), 80),
)
"""IPv6 networks whose addresses stand for an IPv4 address, and how far right of it they end (bits)."""


class EgressRefused(PermissionError):
    """The URL, or an address behind it, is out of bounds. ``reason`` is fit for the caller's eyes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unresolved(EgressRefused):
    """The host has no address, or the look-up took too long; a later attempt may do better."""


def refusal(address: Address) -> str:
    """Why ``address`` is out of bounds, e.g. ``loopback``; empty when it is a public unicast address."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return "link-local"
    for network, reason in _REFUSED:
        if address in network:
            return reason
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "reserved"
    return ""


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that a mapped, compatible, NAT64 or 6to4 address stands for."""
    if isinstance(address, IPv6Address) and int(address) > 1:  # :: and ::1 stand for themselves
        for network, shift in _EMBEDDING:
            if address in network:
                return IPv4Address((int(address) >> shift) & 0xFFFF_FFFF)
    return None


class EgressRules(msgspec.Struct, frozen=True):
    """The allow-list: exact host names (lower case) and networks that may be called all the same."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "EgressRules":
        """From a comma-separated list of host names, addresses and CIDR networks.

        Raises: ValueError naming the entry that is none of them.
        """
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ip_network(entry.strip("[]")))
            except ValueError:
                if not _is_host_name(entry):
                    raise ValueError(
                        f"{entry!r} is neither a host name nor an address nor a network"
                    ) from None
                hosts.add(entry.rstrip(".").lower())
        return cls(frozenset(hosts), tuple(networks))

    def check(self, host: str, address: Address) -> None:
        """Raises: EgressRefused when ``host`` may not be reached at ``address``."""
        if host in self.hosts:
            return
        inner = embedded_ipv4(address)
        if inner is not None and self._is_listed(address) and not refusal(inner):
            return  # a listed NAT64 prefix opens public addresses, not what hides behind it
        for candidate in (address,) if inner is None else (address, inner):
            reason = refusal(candidate)
            if reason and not self._is_listed(candidate):
                raise EgressRefused(f"the host's address is not public ({reason})")

    def _is_listed(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def _is_host_name(text: str) -> bool:
    labels = text.rstrip(".").split(".")
    return len(text) <= 253 and all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        for label in labels
    )


class Destination(msgspec.Struct, frozen=True):
    """Where a URL that passed the rule for its text points; its addresses are not checked yet."""

    host: str
    port: int
    literal: Address | None = None


def destination(url: str) -> Destination:
    """The host and port of ``url``, if its text obeys the rule.

    Raises: EgressRefused.
    Source: gateway rule G9, "URL".
    """
    if len(url) > URL_CHARS_MAX:
        raise EgressRefused(f"the URL is longer than {URL_CHARS_MAX} characters")
    if any(character.isspace() or not character.isprintable() or character == "\\" for character in url):
        raise EgressRefused("the URL holds a character that does not belong into one")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EgressRefused("the URL is not valid") from error
    return parsed_destination(parsed)


def parsed_destination(url: httpx.URL) -> Destination:
    """As ``destination``, for a URL that the HTTP client made (a redirect's next hop, say)."""
    if url.scheme not in ("http", "https"):
        raise EgressRefused("the URL's scheme is neither http nor https")
    if url.userinfo:
        raise EgressRefused("the URL names a user")
    port = url.port if url.port is not None else (443 if url.scheme == "https" else 80)
    if port not in PORTS and not PORT_FIRST_UNPRIVILEGED <= port <= 65_535:
        raise EgressRefused(f"port {port} is not allowed; use 80, 443 or 1024 and above")
    # What is dialled is the encoded form: ideographic dots, say, have become plain ones in it.
    host = url.raw_host.decode("ascii").strip("[]").rstrip(".").lower()
    try:
        literal = ip_address(host)
        if isinstance(literal, IPv6Address) and literal.scope_id is not None:
            raise EgressRefused("the URL's host names a network interface")
        return Destination(host, port, literal)
    except ValueError:
        if not _is_host_name(host):
            raise EgressRefused("the URL's host is not valid") from None
    last = host.rsplit(".", 1)[-1]
    if last.isdigit() or last.startswith("0x"):
        # 2130706433, 0177.0.0.1, 0x7f.1: resolvers read them as addresses, people do not.
        raise EgressRefused("the URL's host is an address in an unusual notation")
    return Destination(host, port)


Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Looks up a host name. Raises: Unresolved."""


class SystemResolver:
    """The operating system's look-up, in threads of its own, with a time-out."""

    def __init__(self, seconds: float = RESOLVE_SECONDS) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                found = await loop.run_in_executor(
                    self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                )
        except TimeoutError as error:
            raise Unresolved("looking up the URL's host took too long") from error
        except (OSError, UnicodeError) as error:
            raise Unresolved("the URL's host has no address") from error
        return tuple(dict.fromkeys(ip_address(row[4][0]) for row in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class EgressGuard:
    """The rule in force: the allow-list and a way to look up names."""

    def __init__(self, rules: EgressRules, resolve: Resolve | None = None) -> None:
        self._rules = rules
        self._own_resolver = SystemResolver() if resolve is None else None
        self._resolve: Resolve = resolve or self._own_resolver  # pyright: ignore[reportAttributeAccessIssue]

    async def vet(self, where: Destination) -> tuple[Address, ...]:
        """Every address of ``where``, all within bounds; at least one.

        Raises: EgressRefused when one of them is not, Unresolved when there is none.
        """
        found = (where.literal,) if where.literal else await self._resolve(where.host, where.port)
        if not found:
            raise Unresolved("the URL's host has no address")
        if len(found) > ADDRESSES_MAX:
            raise EgressRefused(f"the URL's host has more than {ADDRESSES_MAX} addresses")
        for address in found:
            self._rules.check(where.host, address)
        return tuple(found)

    async def check_url(self, url: str) -> None:
        """Raises: EgressRefused when ``url`` may not be stored or called now."""
        await self.vet(destination(url))

    def close(self) -> None:
        if self._own_resolver is not None:
            self._own_resolver.close()
