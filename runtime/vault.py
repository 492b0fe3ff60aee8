"""Named secrets of each tenant, encrypted at rest: AES-256-GCM, one object a secret beside the blobs.

What holds: a value stands in no event, log or error, only in here; an object opens with the key it was
written with, under the tenant and the name it was written for, and nowhere else. A new value replaces the
old one whole. Blocking: call it from threads.

The one module of ``runtime`` that draws random bytes (a nonce for each value, the key itself) and makes a
file for its owner alone.
"""

import base64
import binascii
import hmac
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, cast

import fsspec
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.errors import Diverged, InvalidInput, NotFound, Refused, Unavailable

KEY_BYTES = 32
NONCE_BYTES = 12
VALUE_BYTES_MAX = 64 * 1024
SECRETS_MAX = 1_000
"""Secrets of one tenant; one more is refused."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
"""A name is also that of the object, so it holds no slash and begins with no dot."""

FOLDER = "secrets"
_NAME = re.compile(NAME_PATTERN)
_KEY_RULE = f"the key of the secrets is {KEY_BYTES} bytes in base64"


class Sealed(msgspec.Struct, frozen=True):
    """A value on its way into the vault. ``fingerprint`` is of the encrypted bytes and tells nothing else."""

    tenant: str
    name: str
    data: bytes

    @property
    def fingerprint(self) -> str:
        """16 hex digits; another one each time a value is sealed, the same value too."""
        return sha256(self.data).hexdigest()[:16]


class _Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored, as JSON; bytes in base64. ``key_id`` says which key opens it."""

    format: int
    key_id: str
    nonce: bytes
    ciphertext: bytes


class Vault:
    """Raises: Unavailable from every method when the storage is away."""

    def __init__(self, url: str, key: bytes) -> None:
        """``url``: as of ``BlobStore``. ``key``: see ``load_key``."""
        if len(key) != KEY_BYTES:
            raise ValueError(_KEY_RULE)
        # fsspec ships no types.
        self._fs, root = cast("tuple[Any, str]", cast("Any", fsspec).core.url_to_fs(url))
        self._root = f"{root.rstrip('/')}/{FOLDER}"
        self._is_local = "file" in self._fs.protocol
        self._cipher = AESGCM(key)
        self.key_id = hmac.digest(key, b"heliograph: id of a key of the vault", "sha256").hex()[:16]

    def seal(self, tenant: str, name: str, value: str) -> Sealed:
        """Encrypt; nothing is stored yet. Raises: InvalidInput; Refused when the tenant has its most."""
        if _NAME.fullmatch(name) is None:
            raise InvalidInput((("name", f"must match {NAME_PATTERN}"),))
        plain = value.encode("utf-8", "surrogatepass")
        if not 1 <= len(plain) <= VALUE_BYTES_MAX:
            raise InvalidInput((("value", f"must be 1 to {VALUE_BYTES_MAX} bytes"),))
        known = self.names(tenant)
        if name not in known and len(known) >= SECRETS_MAX:
            raise Refused(f"a tenant has at most {SECRETS_MAX} secrets")
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = self._cipher.encrypt(nonce, plain, _bound_to(tenant, name))
        stored = _Object(format=1, key_id=self.key_id, nonce=nonce, ciphertext=ciphertext)
        return Sealed(tenant, name, msgspec.json.encode(stored))

    def store(self, sealed: Sealed) -> None:
        """Durable when this returns, in the place of an older value."""
        path = self._place(sealed.tenant, sealed.name)
        with _reachable():
            if not self._is_local:
                self._fs.pipe_file(path, sealed.data)
                return
            folder = os.path.dirname(path)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            draft = f"{folder}/.{sealed.name}.{os.getpid()}-{os.urandom(4).hex()}"
            _write_own(draft, sealed.data)
            os.replace(draft, path)
            _sync_folder(folder)

    def set(self, tenant: str, name: str, value: str) -> str:
        """Seal and store; the fingerprint of what is stored now. Raises: as ``seal``."""
        sealed = self.seal(tenant, name, value)
        self.store(sealed)
        return sealed.fingerprint

    def get(self, tenant: str, name: str) -> str:
        """Raises: NotFound; Diverged when this key does not open it, or its content was changed."""
        try:
            with _reachable():
                data = cast("bytes", self._fs.cat_file(self._place(tenant, name)))
        except FileNotFoundError:
            raise NotFound(f"no secret {name}") from None
        try:
            stored = msgspec.json.decode(data, type=_Object)
        except msgspec.DecodeError:
            raise Diverged(f"secret {name}: what is stored can't be read") from None
        if stored.key_id != self.key_id:
            raise Diverged(
                f"secret {name} was encrypted with another key ({stored.key_id}) than the one in use "
                f"({self.key_id}): set HELIOGRAPH_SECRET_KEY to that key, or set the secret again"
            )
        try:
            plain = self._cipher.decrypt(stored.nonce, stored.ciphertext, _bound_to(tenant, name))
        except (InvalidTag, ValueError):
            raise Diverged(
                f"secret {name}: what is stored was changed, or moved from another place"
            ) from None
        return plain.decode("utf-8", "surrogatepass")

    def names(self, tenant: str) -> list[str]:
        """In order; none for a tenant without secrets."""
        folder = self._folder(tenant)
        with _reachable():
            self._fs.invalidate_cache(folder)
            try:
                found = cast("list[str]", self._fs.ls(folder, detail=False))
            except FileNotFoundError:
                return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if _NAME.fullmatch(name))

    def remove(self, tenant: str, name: str) -> bool:
        """Whether there was one."""
        path = self._place(tenant, name)
        with _reachable():
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                return False
            if self._is_local:
                _sync_folder(os.path.dirname(path))
        return True

    def _folder(self, tenant: str) -> str:
        if _NAME.fullmatch(tenant) is None:
            raise NotFound("no such tenant")
        return f"{self._root}/{tenant}"

    def _place(self, tenant: str, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise NotFound("no such secret")
        return f"{self._folder(tenant)}/{name}"


def load_key(given: str, file: str, *, create: bool = False) -> bytes:
    """The key: ``given`` (from the environment) when not empty, else what ``file`` holds.

    ``create``: a file that is missing is made, with a new key, for its owner alone. Only the gateway does
    that, and before any host starts: two processes with a key each could not read one another's secrets.

    Raises: ValueError for what is no key, without showing it; NotFound for a missing file; Unavailable.
    """
    if given.strip():
        return _key(given)
    with _reachable():
        try:
            return _key(_read(file))
        except FileNotFoundError:
            if not create:
                raise NotFound(
                    f"no key of the secrets: HELIOGRAPH_SECRET_KEY is not set, {file} is missing"
                ) from None
        os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
        draft = f"{file}.{os.getpid()}-{os.urandom(4).hex()}"
        _write_own(draft, base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
        try:
            # A link, unlike a rename, does not replace what another gateway put there meanwhile.
            os.link(draft, file)
        except FileExistsError:
            pass
        finally:
            os.unlink(draft)
        _sync_folder(os.path.dirname(file) or ".")
        return _key(_read(file))


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(_KEY_RULE)  # the text itself must not show up in a log
    return key


def _bound_to(tenant: str, name: str) -> bytes:
    """Authenticated with the value: an object copied to another name does not open. No colon in either."""
    return f"heliograph secret 1:{tenant}:{name}".encode()


def _read(file: str) -> str:
    descriptor = os.open(file, os.O_RDONLY)
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as opened:
        return opened.read(1_000)


def _write_own(path: str, data: bytes) -> None:
    """A new file that only its owner may read, on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reachable() -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"the vault of secrets is unavailable: {error.strerror or error}") from error
