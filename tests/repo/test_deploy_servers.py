"""The scripts that run inside foreign containers, run here against stand-ins of what those bring."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repo.compose import load_script, variables_in
from tests.repo.sources import ROOT

importer = load_script("deploy/dashboards/import_objects.py")

PASSWORDS = {
    "OPENSEARCH_ADMIN_PASSWORD": "admins",
    "OPENSEARCH_SERVICES_PASSWORD": "services",
    "OPENSEARCH_DASHBOARDS_PASSWORD": "dashboards",
}
HASHER = r"""#!/bin/bash
echo "** This tool will be deprecated **"
[ "$1" = -env ] || exit 3
printf '$2y$12$%s\n' "$(printf '%s' "${!2}" | sha256sum | head -c 53)"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder like that of the OpenSearch image, with the system's keytool."""
    keytool = shutil.which("keytool")
    if keytool is None:
        pytest.skip("keytool is not on PATH: it comes with a JDK")
    (tmp_path / "config" / "opensearch-security").mkdir(parents=True)
    tools = tmp_path / "plugins" / "opensearch-security" / "tools"
    tools.mkdir(parents=True)
    (tools / "hash.sh").write_text(HASHER)
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    (tmp_path / "jdk" / "bin" / "keytool").symlink_to(keytool)
    (tmp_path / "opensearch-docker-entrypoint.sh").write_text('echo "started $*"\n')
    return tmp_path


def start(home: Path, passwords: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "OPENSEARCH_HOME": str(home), **passwords}
    script = ROOT / "deploy" / "opensearch" / "start.sh"
    return subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)


def test_opensearch_starts_with_our_users_and_no_demo_user(home: Path) -> None:
    ended = start(home, PASSWORDS)

    users = yaml.safe_load((home / "config/opensearch-security/internal_users.yml").read_text())
    assert ended.stdout.strip() == "started opensearch", ended.stderr
    assert set(users) == {"_meta", "admin", "modelworks", "kibanaserver"}
    assert len({user["hash"] for name, user in users.items() if name != "_meta"}) == 3
    assert all(re.fullmatch(r"\$2y\$12\$\w{53}", user["hash"]) for name, user in users.items() if name != "_meta")


def test_every_role_that_is_mapped_is_ours_or_opensearchs_own(home: Path) -> None:
    start(home, PASSWORDS)
    folder = home / "config/opensearch-security"
    roles = yaml.safe_load((folder / "roles.yml").read_text())
    mapping = yaml.safe_load((folder / "roles_mapping.yml").read_text())
    built_in = {"all_access", "kibana_server", "kibana_user"}

    assert set(mapping) - {"_meta"} <= set(roles) | built_in
    assert mapping["modelworks_services"]["users"] == ["modelworks"]
    assert roles["modelworks_services"]["index_permissions"][0]["index_patterns"][0] == "modelworks-*"


def test_opensearchs_node_key_is_new_and_opens_with_the_password_beside_it(home: Path) -> None:
    start(home, PASSWORDS)
    first = (home / "config/node.p12").read_bytes()
    start(home, PASSWORDS)

    settings = yaml.safe_load((home / "config/opensearch.yml").read_text())
    password = settings["plugins.security.ssl.transport.keystore_password"]
    listed = {
        name: subprocess.run(
            ["keytool", "-list", "-keystore", str(home / "config" / f"{name}.p12"), "-storepass", password],
            capture_output=True, text=True, check=True,
        ).stdout
        for name in ("node", "trust")
    }  # fmt: skip
    assert (home / "config/node.p12").read_bytes() != first
    assert "PrivateKeyEntry" in listed["node"]
    assert "trustedCertEntry" in listed["trust"]
    assert (home / "config/opensearch.yml").stat().st_mode & 0o077 == 0
    assert settings["transport.host"] == "127.0.0.1"


@pytest.mark.parametrize("missing", PASSWORDS)
def test_opensearch_does_not_start_without_a_password(home: Path, missing: str) -> None:
    ended = start(home, PASSWORDS | {missing: ""})

    assert ended.returncode == 1
    assert ended.stderr.strip() == f"start.sh: {missing} is not set"
    assert not (home / "config/opensearch-security/internal_users.yml").exists()


def test_opensearch_does_not_start_when_a_password_cannot_be_hashed(home: Path) -> None:
    (home / "plugins/opensearch-security/tools/hash.sh").write_text("echo broken; exit 1\n")

    ended = start(home, PASSWORDS)

    assert ended.returncode == 1
    assert "could not be hashed" in ended.stderr
    assert "started" not in ended.stdout


@dataclass
class FakeDashboards:
    """Answers like the saved-objects API; what it is asked is kept."""

    busy: int = 0
    """Requests that are first answered 503."""
    success: bool = True
    lost: frozenset[str] = frozenset()
    """Ids that cannot be read back although the import said yes."""
    status: int = 200
    imported: list[dict[str, Any]] = field(default_factory=list)
    headers: Message = field(default_factory=Message)

    def answer(self, path: str, headers: Message, body: bytes) -> tuple[int, Any]:
        self.headers = headers
        if self.busy:
            self.busy -= 1
            return 503, {"message": "not ready"}
        if path.startswith("/api/saved_objects/_import"):
            if self.status != 200:
                return self.status, {"message": "no"}
            head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
            parts = BytesParser().parsebytes(head + body).get_payload()
            assert isinstance(parts, list)
            (part,) = parts
            assert isinstance(part, Message)
            assert str(part.get_filename()).endswith(".ndjson")
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            if self.success:
                lines = [json.loads(line) for line in content.decode().splitlines() if line]
                self.imported += [line for line in lines if "id" in line]
                return 200, {"success": True, "successCount": len(self.imported)}
            return 200, {"success": False, "errors": [{"id": "a", "error": {"type": "missing_references"}}]}
        there = {item["id"] for item in self.imported} - self.lost
        found = [item if item["id"] in there else {**item, "error": {"statusCode": 404}} for item in json.loads(body)]
        return 200, {"saved_objects": found}


@pytest.fixture
def fake() -> Iterator[tuple[FakeDashboards, str]]:
    state = FakeDashboards()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, document = state.answer(self.path, self.headers, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    lines = [{"type": "index-pattern", "id": "a", "attributes": {}}, {"type": "dashboard", "id": "b", "attributes": {}}]
    (tmp_path / "audit.ndjson").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"exportedCount": 2}\n'
    )
    return tmp_path


def test_objects_are_imported_and_read_back(fake: tuple[FakeDashboards, str], objects: Path) -> None:
    state, url = fake

    count = importer.run(objects, importer.Dashboards(url, "admin", "secret"), wait_seconds=5)

    assert count == 2
    assert state.headers["osd-xsrf"] == "true"
    assert state.headers["Authorization"].startswith("Basic ")


def test_import_that_says_no_in_an_answer_of_200_fails(fake: tuple[FakeDashboards, str], objects: Path) -> None:
    state, url = fake
    state.success = False

    with pytest.raises(importer.Refused, match="missing_references"):
        importer.run(objects, importer.Dashboards(url, "admin", "secret"), wait_seconds=5)


def test_object_that_cannot_be_read_back_fails(fake: tuple[FakeDashboards, str], objects: Path) -> None:
    state, url = fake
    state.lost = frozenset({"b"})

    with pytest.raises(importer.Refused, match="dashboard:b"):
        importer.run(objects, importer.Dashboards(url, "admin", "secret"), wait_seconds=5)


def test_server_that_is_not_up_yet_is_waited_for(
    fake: tuple[FakeDashboards, str], objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = fake
    state.busy = 2
    monkeypatch.setattr(importer, "_PAUSE_SECONDS", 0.01)

    assert importer.run(objects, importer.Dashboards(url, "admin", "secret"), wait_seconds=5) == 2


def test_wrong_password_is_told_in_one_line_and_not_tried_again(
    fake: tuple[FakeDashboards, str], objects: Path
) -> None:
    state, url = fake
    state.status = 401

    environment = {"DASHBOARDS_URL": url, "DASHBOARDS_USER": "admin", "DASHBOARDS_PASSWORD": "wrong-secret"}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "deploy/dashboards/import_objects.py"), str(objects)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == 1
    assert "401" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "wrong-secret" not in ended.stderr


def test_folder_without_objects_fails(fake: tuple[FakeDashboards, str], tmp_path: Path) -> None:
    with pytest.raises(importer.Refused, match=r"no \*\.ndjson"):
        importer.run(tmp_path, importer.Dashboards(fake[1], "admin", "secret"), wait_seconds=5)


def test_the_suites_own_objects_are_imported(fake: tuple[FakeDashboards, str]) -> None:
    state, url = fake

    count = importer.run(ROOT / "deploy" / "dashboards", importer.Dashboards(url, "admin", "secret"), wait_seconds=5)

    assert count == len({(item["type"], item["id"]) for item in state.imported}) > 0


def test_dashboards_and_collector_read_only_variables_that_compose_gives() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    dashboards = (ROOT / "deploy/dashboards/opensearch_dashboards.yml").read_text()
    collector = (ROOT / "deploy/otel/collector.yaml").read_text()

    assert {variable.name for variable in variables_in(yaml.safe_load(dashboards))} == set(
        services["dashboards"]["environment"]
    )
    assert set(re.findall(r"\$\{env:(\w+)\}", collector)) == set(services["otel-collector"]["environment"])


def test_every_part_of_the_collectors_pipeline_is_configured() -> None:
    document = yaml.safe_load((ROOT / "deploy/otel/collector.yaml").read_text())

    for pipeline in document["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(document[kind])
    assert set(document["service"]["extensions"]) == set(document["extensions"])
