"""`make env`: random secrets for compose, made once, kept ever after, never shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from modelworks.audit.tlog.note import Signer

from tests.repo.compose import environment_of, load_script, read_env
from tests.repo.sources import ROOT

SCRIPT = ROOT / "deploy" / "make_env.py"
make_env = load_script("deploy/make_env.py")


def run(path: Path) -> subprocess.CompletedProcess[str]:
    # As `make env` does: any Python, nothing installed.
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), str(path)], capture_output=True, text=True, check=False
    )


def test_first_run_makes_every_secret_for_the_owner_only(tmp_path: Path) -> None:
    ended = run(tmp_path / ".env")

    values = read_env(tmp_path / ".env")
    assert ended.returncode == 0
    assert set(values) == set(make_env.VARIABLES)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert all(len(value) >= 32 for name, value in values.items() if name != "S3_ACCESS_KEY")
    assert len(set(values.values())) == len(values)


def test_names_are_printed_and_values_are_not(tmp_path: Path) -> None:
    ended = run(tmp_path / ".env")

    assert all(name in ended.stdout for name in make_env.VARIABLES)
    assert not any(value in ended.stdout + ended.stderr for value in read_env(tmp_path / ".env").values())


def test_two_installations_share_no_secret(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")

    assert not set(read_env(tmp_path / "a").values()) & set(read_env(tmp_path / "b").values())


def test_second_run_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / ".env")
    before = (tmp_path / ".env").read_bytes()

    ended = run(tmp_path / ".env")

    assert (tmp_path / ".env").read_bytes() == before
    assert "made " not in ended.stdout.splitlines()[0]


def test_what_is_set_stays_and_what_is_missing_or_empty_is_added(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text('# mine\nREDIS_PASSWORD=chosen\nexport S3_SECRET_KEY=""\nMODELWORKS_PORT=9000\n')
    path.chmod(0o644)

    run(path)

    values = read_env(path)
    assert path.read_text().startswith("# mine\nREDIS_PASSWORD=chosen\nS3_SECRET_KEY=")
    assert values["MODELWORKS_PORT"] == "9000"
    assert len(values["S3_SECRET_KEY"]) >= 32
    assert set(make_env.VARIABLES) <= set(values)
    assert path.stat().st_mode & 0o777 == 0o600


def test_file_that_others_may_read_is_closed(tmp_path: Path) -> None:
    run(tmp_path / ".env")
    (tmp_path / ".env").chmod(0o644)

    run(tmp_path / ".env")

    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_folder_that_is_not_there_is_one_line_and_exit_1(tmp_path: Path) -> None:
    ended = run(tmp_path / "missing" / ".env")

    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "Traceback" not in ended.stderr


# RFC 8032 section 7.1, tests 1, 2 and 3: seed and public key.
@pytest.mark.parametrize(
    ("seed", "public"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        ),
    ],
)
def test_public_key_is_that_of_the_standard(seed: str, public: str) -> None:
    assert make_env.ed25519_public(bytes.fromhex(seed)).hex() == public


def test_audit_accepts_the_signing_key_and_signs_with_it(tmp_path: Path) -> None:
    run(tmp_path / ".env")

    signer = Signer(read_env(tmp_path / ".env")["AUDIT_SIGNING_KEY"])

    note = signer.sign("text\n")
    assert signer.name == make_env.ORIGIN
    assert signer.verifier.open(note) == "text\n"


def test_opensearch_accepts_the_passwords() -> None:
    """Eight characters or more, with an upper and a lower letter, a digit and a special character."""
    for _ in range(200):
        password = make_env.password()
        assert any(c.isupper() for c in password)
        assert any(c.islower() for c in password)
        assert any(c.isdigit() for c in password)
        assert any(not c.isalnum() for c in password)


def test_no_value_needs_quoting_in_a_url_in_json_or_in_the_file(tmp_path: Path) -> None:
    run(tmp_path / ".env")
    values = read_env(tmp_path / ".env")

    clients = json.loads(environment_of("auth", values)["AUTH_SERVICE_CLIENTS"])

    assert clients["optimizer"]["secret"] == values["OPTIMIZER_CLIENT_SECRET"]
    for name, value in values.items():
        assert not set(value) & set(" #$'\"\\"), name
        if name != "AUDIT_SIGNING_KEY":
            assert not set(value) & set("/@:?&="), name
