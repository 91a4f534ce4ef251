"""`docker-compose.yml`: no default password, everything bounded and healthy, and every variable a real setting."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from modelworks.kit.settings import PlatformSettings, Settings
from modelworks.stores.settings import StoresSettings

from tests.repo.compose import (
    COMPOSE_FILE,
    OURS,
    environment_of,
    load_script,
    made_env,
    raw,
    resolve,
    services,
    size_bytes,
    variables_in,
)
from tests.repo.dockerfile import stages
from tests.repo.sources import NAMESPACE, ROOT

DOCUMENT = raw()
ALL: dict[str, Any] = DOCUMENT["services"]
NO_HEALTHCHECK = {
    "otel-collector": "its image holds one program and no shell; nothing waits for it",
    "dashboards-import": "ends when its work is done",
}
SECRET_NAME = re.compile(r"(SECRET|PASSWORD|_KEY$|TOKEN$|CLIENTS$|REDIS_URL)")
PUBLISHED = {"edge", "dashboards"}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made_env(tmp_path_factory.mktemp("env"))


def service_of(container: str) -> str:
    return container.removesuffix("-gpu")


def settings_of(container: str) -> list[type[Settings]]:
    service = service_of(container)
    module = importlib.import_module(f"{NAMESPACE}.{service}.settings")
    return [PlatformSettings, StoresSettings, getattr(module, f"{service.capitalize()}Settings")]


def test_every_required_variable_is_made_by_make_env_and_no_other() -> None:
    required = {variable.name for variable in variables_in(DOCUMENT) if variable.kind == ":?"}

    assert required == set(load_script("deploy/make_env.py").VARIABLES)


def test_every_other_variable_has_a_default() -> None:
    assert [variable.name for variable in variables_in(DOCUMENT) if not variable.kind] == []


def test_a_start_without_make_env_is_refused() -> None:
    with pytest.raises(LookupError):
        services({})


@pytest.mark.parametrize("container", ALL)
def test_no_secret_is_written_down(container: str) -> None:
    for name, value in ALL[container].get("environment", {}).items():
        if SECRET_NAME.search(name):
            found = list(variables_in(value))
            assert found, f"{name} is a literal"
            assert all(variable.kind == ":?" for variable in found), f"{name} has a default"


def test_secrets_reach_only_who_needs_them() -> None:
    holders: dict[str, set[str]] = {}
    for container, service in ALL.items():
        for variable in variables_in(service.get("environment", {})):
            holders.setdefault(variable.name, set()).add(container)

    assert holders["AUTH_MASTER_KEY"] == {"auth"}
    assert holders["AUTH_ADMIN_CLIENT_SECRET"] == {"auth"}
    assert holders["AUDIT_SIGNING_KEY"] == {"audit"}
    assert holders["OPTIMIZER_CLIENT_SECRET"] == {"auth", "optimizer"}
    assert holders["INFERENCE_CLIENT_SECRET"] == {"auth", "inference", "inference-gpu"}
    assert holders["OPENSEARCH_ADMIN_PASSWORD"] == {"opensearch", "dashboards-import"}
    assert holders["REDIS_PASSWORD"] == {"redis", *OURS}


def test_the_six_services_and_their_servers_are_there() -> None:
    assert set(ALL) == {
        *OURS, "kafka", "opensearch", "dashboards", "dashboards-import", "minio", "redis", "otel-collector",
    }  # fmt: skip


@pytest.mark.parametrize("container", ALL)
def test_every_container_is_bounded_and_starts_again(container: str) -> None:
    service = ALL[container]
    limits = service["deploy"]["resources"]["limits"]

    assert float(limits["cpus"]) > 0
    assert size_bytes(limits["memory"]) >= 64 * 1024**2
    assert service["restart"] in ("unless-stopped", "on-failure:5")
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("container", ALL)
def test_every_container_tells_its_health(container: str) -> None:
    check = ALL[container]["healthcheck"]

    assert ("test" in check) == (container not in NO_HEALTHCHECK)
    if "test" in check:
        assert check.keys() >= {"interval", "timeout", "retries", "start_period"}


@pytest.mark.parametrize("container", ALL)
def test_who_is_waited_for_tells_its_health(container: str) -> None:
    for other, how in ALL[container].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert other not in NO_HEALTHCHECK


def test_only_door_and_dashboards_are_published_and_on_loopback(env: Mapping[str, str]) -> None:
    for container, service in services(env).items():
        ports = service.get("ports", [])
        assert bool(ports) == (container in PUBLISHED)
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert ("door" in service["networks"]) == (container in PUBLISHED)
    assert DOCUMENT["networks"]["suite"]["internal"] is True


@pytest.mark.parametrize("container", ALL)
def test_images_are_pinned(container: str) -> None:
    image = resolve(ALL[container]["image"], {})
    name, _, tag = image.rpartition(":")

    assert name
    assert re.search(r"\d", tag)
    assert tag != "latest"


@pytest.mark.parametrize("container", OURS)
def test_our_containers_may_do_little(container: str) -> None:
    service = ALL[container]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True
    assert service["environment"]["MODELWORKS_ENVIRONMENT"] == "production"
    assert service["environment"]["STORES_COLUMN"] == "real"


@pytest.mark.parametrize("container", OURS)
def test_our_images_are_targets_of_the_dockerfile(container: str) -> None:
    build = ALL[container]["build"]

    assert build["target"] == container
    assert (ROOT / build["dockerfile"]).is_file()
    assert build["target"] in stages()


@pytest.mark.parametrize("container", OURS)
def test_every_variable_is_a_setting(container: str) -> None:
    kinds = settings_of(container)
    known = {f"{kind.model_config['env_prefix']}{name}".upper() for kind in kinds for name in kind.model_fields}

    assert set(ALL[container]["environment"]) - known == set()


@pytest.mark.parametrize("container", OURS)
def test_settings_can_be_made_of_what_the_container_gets(
    container: str, env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """INVARIANT: a container that compose starts has every required setting, each valid."""
    given = environment_of(container, env)
    for kind in settings_of(container):
        prefix = str(kind.model_config["env_prefix"])
        for name in kind.model_fields:
            monkeypatch.delenv(f"{prefix}{name}".upper(), raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    made = [kind() for kind in settings_of(container)]

    values = made[0].public() | made[1].public()
    assert values["environment"] == "production"
    assert values["column"] == "real"
    assert values["s3_secret_key"] == "set"


@pytest.mark.parametrize("container", OURS)
def test_every_folder_of_a_service_can_be_written(
    container: str, env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root file system is read-only: a folder that a setting names must lie in a volume or in /tmp."""
    for name, value in environment_of(container, env).items():
        monkeypatch.setenv(name, value)
    targets = [mount.split(":")[1] for mount in services(env)[container].get("volumes", [])]
    writable = [Path("/tmp"), *map(Path, targets)]

    for kind in settings_of(container):
        made = kind()
        for name in kind.model_fields:
            value = getattr(made, name)
            if isinstance(value, Path) and kind is not StoresSettings:
                assert any(root in value.parents or root == value for root in writable), f"{name}: {value}"


@pytest.mark.parametrize("container", OURS)
def test_entry_points_exist(container: str) -> None:
    service = service_of(container)
    (command,) = stages()[container].all("CMD")

    assert command.words == ["python", "-m", f"{NAMESPACE}.{service}"]
    assert importlib.util.find_spec(f"{NAMESPACE}.{service}.__main__")
    assert callable(importlib.import_module(f"{NAMESPACE}.{service}.app").main)


def test_every_mount_and_volume_exists() -> None:
    used = set()
    for service in ALL.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert mount.endswith(":ro"), f"{mount}: the checkout is not written to"
            else:
                used.add(source)

    assert used == set(DOCUMENT["volumes"])


def test_memory_limits_hold_what_the_settings_allow() -> None:
    def limit(container: str) -> int:
        return size_bytes(ALL[container]["deploy"]["resources"]["limits"]["memory"])

    def default(container: str, name: str) -> int:
        return int(settings_of(container)[2].model_fields[name].default)

    half_a_gib = 512 * 1024**2
    assert limit("optimizer") >= default("optimizer", "worker_memory_bytes_max") + half_a_gib
    assert limit("inference") >= default("inference", "memory_bytes_max") + half_a_gib
    heap = re.search(r"-Xmx(\w+)", ALL["opensearch"]["environment"]["OPENSEARCH_JAVA_OPTS"])
    assert heap is not None
    assert limit("opensearch") >= 2 * size_bytes(heap[1]), "half of the memory is for the file cache"


def test_requests_under_way_are_finished_before_a_container_is_killed() -> None:
    """`serve` gives requests 15 s to end; the consumers drain after them."""
    for container in OURS:
        assert int(ALL[container]["stop_grace_period"].removesuffix("s")) >= 30


def test_auth_believes_the_network_that_the_door_is_in(env: Mapping[str, str]) -> None:
    (subnet,) = resolve(DOCUMENT["networks"]["suite"]["ipam"]["config"], env)

    assert environment_of("auth", env)["AUTH_TRUSTED_PROXIES"] == f'["{subnet["subnet"]}"]'


def test_the_file_speaks_of_make_env() -> None:
    messages = {variable.rest for variable in variables_in(DOCUMENT) if variable.kind == ":?"}

    assert messages == {"run make env first"}
    assert COMPOSE_FILE.read_text("utf-8").startswith("#")
