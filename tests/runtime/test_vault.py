"""Secrets at rest: what opens them, what doesn't, and what can be read without the key."""

import base64
import os
import stat
import threading
from pathlib import Path

import pytest

from runtime.errors import Diverged, InvalidInput, NotFound, Refused, Unavailable
from runtime.vault import FOLDER, VALUE_BYTES_MAX, Vault, load_key

KEY = bytes(range(32))
VALUE = "s3cret “value”\nwith lines"


@pytest.fixture(params=["folder", "memory"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Vault:
    return Vault(str(tmp_path) if request.param == "folder" else f"memory://vault-{tmp_path.name}", KEY)


def everything_below(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_secret_is_given_back_as_it_was_set(vault: Vault) -> None:
    vault.set("acme", "github", VALUE)
    vault.set("acme", "other", "x" * VALUE_BYTES_MAX)
    assert vault.get("acme", "github") == VALUE
    assert len(vault.get("acme", "other")) == VALUE_BYTES_MAX
    assert vault.names("acme") == ["github", "other"]


def test_a_new_value_replaces_the_old_one_and_has_another_fingerprint(vault: Vault) -> None:
    first = vault.set("acme", "github", "one")
    second = vault.set("acme", "github", "one")
    assert first != second, "the fingerprint is of the encrypted bytes"
    vault.set("acme", "github", "two")
    assert vault.get("acme", "github") == "two"
    assert vault.names("acme") == ["github"]


def test_tenants_do_not_see_each_others_secrets(vault: Vault) -> None:
    vault.set("acme", "github", VALUE)
    assert vault.names("other") == []
    with pytest.raises(NotFound):
        vault.get("other", "github")
    assert vault.remove("other", "github") is False
    assert vault.get("acme", "github") == VALUE


def test_a_removed_secret_is_gone(vault: Vault) -> None:
    vault.set("acme", "github", VALUE)
    assert vault.remove("acme", "github") is True
    assert vault.remove("acme", "github") is False
    assert vault.names("acme") == []
    with pytest.raises(NotFound):
        vault.get("acme", "github")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a\x00", "x" * 101, "a b", "a:b"])
def test_a_name_that_could_be_a_path_is_refused(vault: Vault, name: str) -> None:
    with pytest.raises(InvalidInput, match="name: must match"):
        vault.set("acme", name, "x")
    for look in (vault.get, vault.remove):
        with pytest.raises(NotFound):
            look("acme", name)
    with pytest.raises(NotFound):
        vault.set(name, "github", "x")


@pytest.mark.parametrize("value", ["", "x" * (VALUE_BYTES_MAX + 1), "é" * (VALUE_BYTES_MAX // 2 + 1)])
def test_a_value_out_of_bounds_is_refused(vault: Vault, value: str) -> None:
    with pytest.raises(InvalidInput, match="value: must be 1 to 65536 bytes"):
        vault.set("acme", "github", value)


def test_a_tenant_has_a_bound_of_secrets(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.vault.SECRETS_MAX", 2)
    for name in ("a", "b"):
        vault.set("acme", name, "x")
    with pytest.raises(Refused, match="at most 2 secrets"):
        vault.set("acme", "c", "x")
    vault.set("acme", "a", "a new value takes no more room")
    vault.set("other", "c", "x")


def test_nothing_at_rest_shows_the_value_and_only_its_owner_may_read(tmp_path: Path) -> None:
    vault = Vault(str(tmp_path), KEY)
    vault.set("acme", "github", "plain-text-of-the-value")
    path = tmp_path / FOLDER / "acme" / "github"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stored = everything_below(tmp_path)
    assert b"plain-text" not in stored
    assert base64.b64encode(KEY)[:20] not in stored


def test_another_key_gives_one_clear_error_and_no_value(tmp_path: Path) -> None:
    Vault(str(tmp_path), KEY).set("acme", "github", VALUE)
    other = Vault(str(tmp_path), bytes(32))
    with pytest.raises(Diverged, match=r"encrypted with another key .* HELIOGRAPH_SECRET_KEY") as refused:
        other.get("acme", "github")
    assert "s3cret" not in str(refused.value)
    assert other.names("acme") == ["github"], "names need no key"
    other.set("acme", "github", "anew")
    assert other.get("acme", "github") == "anew"


def test_an_object_moved_to_another_name_or_tenant_does_not_open(tmp_path: Path) -> None:
    vault = Vault(str(tmp_path), KEY)
    vault.set("acme", "github", VALUE)
    vault.set("other", "github", "x")
    data = (tmp_path / FOLDER / "acme" / "github").read_bytes()
    (tmp_path / FOLDER / "acme" / "copy").write_bytes(data)
    (tmp_path / FOLDER / "other" / "github").write_bytes(data)
    for tenant, name in (("acme", "copy"), ("other", "github")):
        with pytest.raises(Diverged, match="was changed, or moved"):
            vault.get(tenant, name)
    assert vault.get("acme", "github") == VALUE


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json"])
def test_a_damaged_object_is_no_secret(tmp_path: Path, damage: bytes) -> None:
    vault = Vault(str(tmp_path), KEY)
    vault.set("acme", "github", VALUE)
    (tmp_path / FOLDER / "acme" / "github").write_bytes(damage)
    with pytest.raises(Diverged, match="can't be read"):
        vault.get("acme", "github")


def test_a_storage_that_is_away_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="vault of secrets is unavailable"):
        Vault(str(tmp_path), KEY).set("acme", "github", VALUE)


# --- the key ------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "secret.key"
    with pytest.raises(NotFound, match="HELIOGRAPH_SECRET_KEY is not set"):
        load_key("", str(file))
    key = load_key("", str(file), create=True)
    assert len(key) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_key("", str(file), create=True) == load_key("", str(file)) == key
    assert os.listdir(file.parent) == ["secret.key"]


def test_gateways_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    file = str(tmp_path / "secret.key")
    keys: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: keys.append(load_key("", file, create=True))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(keys) == 8
    assert set(keys) == {load_key("", file)}


def test_a_key_of_the_environment_comes_first_and_makes_no_file(tmp_path: Path) -> None:
    file = tmp_path / "secret.key"
    assert load_key(base64.b64encode(KEY).decode() + "\n", str(file), create=True) == KEY
    assert not file.exists()


@pytest.mark.parametrize("text", ["short", "A" * 44 + "!", base64.b64encode(b"x" * 31).decode()])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret.key"
    file.write_text(text)
    for given in (text, ""):
        with pytest.raises(ValueError, match="32 bytes in base64") as refused:
            load_key(given, str(file))
        assert text not in str(refused.value)
