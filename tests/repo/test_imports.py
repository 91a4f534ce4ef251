"""Rules about imports. Each has a name; what is exempt stands in a table with its reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.repo.sources import (
    LIBS,
    NAMESPACE,
    ROOT,
    SERVICES,
    Import,
    distribution_of,
    files_of,
    folder_of,
    imports_of,
    is_stdlib,
    member_imports,
    package_of,
    project,
    requirement_name,
)

MEMBERS = (*LIBS, *SERVICES)

LIBS_MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "events": frozenset(),
    "kit": frozenset({"events"}),
    "stores": frozenset({"events", "kit"}),
    # `up` composes the suite in one process; services are found by name there and nowhere else.
    "client": frozenset({"events", "kit", "stores"}),
}
LIBS_MAY_TRY: Mapping[str, frozenset[str]] = {
    # `modelworks audit verify` uses the verifier where the audit service is installed, and says so where it is not;
    # `modelworks up` composes the services that are installed, the edge last.
    "client": frozenset({"audit", "edge"}),
}
SERVERS_CLIENTS = ("faststream", "aiokafka", "minio", "opensearchpy", "redis", "fakeredis", "aiosqlite", "sqlite3")
"""Libraries that speak to a store: only libs/stores knows which one is behind a port."""
ENGINES = ("onnx", "onnxruntime", "torch", "transformers", "safetensors", "tokenizers")
ENGINES_MAY_BE_IN = (
    "services/inference/src/modelworks/inference/engine/",
    "services/optimizer/src/modelworks/optimizer/passes/",
    "services/optimizer/src/modelworks/optimizer/evaluation/",
    # The worker's own process: the service's process never holds a graph.
    "services/optimizer/src/modelworks/optimizer/worker.py",
    "services/optimizer/src/modelworks/optimizer/onnx_file.py",
    # `modelworks demo --bert` turns text into tokens, as every client of a text model must.
    "libs/client/src/modelworks/client/demo/",
)
HEAVY = ("onnx", "onnxruntime", "torch", "transformers")
USED_WITHOUT_IMPORT: Mapping[str, Mapping[str, str]] = {
    "kit": {"httptools": "uvicorn's parser of HTTP, chosen when it is installed"},
    "inference": {"onnxruntime-gpu": "the same import name as onnxruntime, for the gpu extra"},
    "optimizer": {
        "onnxruntime-gpu": "the same import name as onnxruntime, for the gpu extra",
        "onnxscript": "torch's exporter asks for it",
    },
}
DOMAIN_MAY_IMPORT = ("pydantic", f"{NAMESPACE}.events", f"{NAMESPACE}.kit.errors")


def within(module: str, *roots: str) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def told(found: list[Import]) -> str:
    return "\n".join(str(item) for item in found)


@pytest.mark.parametrize("service", SERVICES)
def test_services_never_import_each_other(service: str) -> None:
    found = [item for item in member_imports(service) if item.member in SERVICES and item.member != service]

    assert not found, f"services meet through events or HTTP:\n{told(found)}"


@pytest.mark.parametrize("lib", LIBS)
def test_libs_import_only_libs_below_them(lib: str) -> None:
    allowed = {lib, *LIBS_MAY_IMPORT[lib], *LIBS_MAY_TRY.get(lib, ())}
    found = [item for item in member_imports(lib) if item.member and item.member not in allowed]

    assert not found, told(found)


@pytest.mark.parametrize("service", SERVICES)
def test_domain_is_pure(service: str) -> None:
    domain = package_of(service) / "domain.py"
    # Values that grew into a file beside it are held to the same rule; the heavy parts have folders and rules of their own.
    pending, seen, found = [domain], {domain}, []

    while pending:
        for item in imports_of(pending.pop()):
            if within(item.module, f"{NAMESPACE}.{service}"):
                for target in item.targets:
                    file = _file_of(target)
                    if file and file not in seen:
                        seen.add(file)
                        pending.append(file)
            elif not is_stdlib(item.module) and not within(item.module, *DOMAIN_MAY_IMPORT):
                found.append(item)

    assert not found, f"domain.py reaches beyond the standard library, pydantic, events and errors:\n{told(found)}"


def _file_of(module: str) -> Path | None:
    service = module.split(".")[1]
    file = package_of(service).joinpath(*module.split(".")[2:]).with_suffix(".py")
    return file if file.is_file() and file.parent == package_of(service) else None


@pytest.mark.parametrize("service", SERVICES)
def test_only_app_names_concrete_adapters(service: str) -> None:
    adapters = f"{NAMESPACE}.{service}.adapters"
    allowed = package_of(service) / "app.py"
    found = [
        item
        for item in member_imports(service)
        if item.file != allowed
        and package_of(service) / "adapters" not in item.file.parents
        and any(within(target, adapters) for target in item.targets)
    ]

    assert not found, told(found)


def test_only_the_column_names_the_stores_adapters() -> None:
    adapters = tuple(
        f"{NAMESPACE}.stores.{port}.{name}"
        for port, names in {
            "bus": ("sqlite", "kafka"),
            "documents": ("sqlite", "opensearch"),
            "objects": ("folder", "s3"),
            "keyvalue": ("embedded", "redis"),
        }.items()
        for name in names
    )
    found = [
        item
        for member in MEMBERS
        for item in member_imports(member)
        if any(within(target, *adapters) for target in item.targets)
        and item.file != package_of("stores") / "stores.py"
        and item.file.parent.parent != package_of("stores")
    ]

    assert not found, told(found)


@pytest.mark.parametrize("member", [member for member in MEMBERS if member != "stores"])
def test_only_stores_speaks_to_servers(member: str) -> None:
    found = [item for item in member_imports(member) if within(item.module, *SERVERS_CLIENTS)]

    assert not found, told(found)


def test_engines_are_loaded_only_where_they_run() -> None:
    found = [
        item
        for member in MEMBERS
        for item in member_imports(member)
        if within(item.module, *ENGINES) and not str(item.file.relative_to(ROOT)).startswith(ENGINES_MAY_BE_IN)
    ]

    assert not found, told(found)


@pytest.mark.parametrize("service", SERVICES)
def test_importing_a_service_loads_no_engine_and_no_other_service(service: str) -> None:
    """INVARIANT: composing a service costs no engine's memory, and works where no other service is installed.

    Broken by an import of onnx or torch at the top of a module that `app.py` reaches.
    """
    others = [f"{NAMESPACE}.{name}" for name in SERVICES if name != service]
    script = (
        f"import sys, {NAMESPACE}.{service}.app\nprint([name for name in {[*HEAVY, *others]!r} if name in sys.modules])"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("member", MEMBERS)
def test_dependencies_of_a_member_equal_what_it_imports(member: str) -> None:
    table = project(folder_of(member))
    declared = {requirement_name(text) for text in table["dependencies"]}
    for extra in table.get("optional-dependencies", {}).values():
        declared |= {requirement_name(text) for text in extra}
    optional = {f"{NAMESPACE}-{name}" for name in LIBS_MAY_TRY.get(member, ())}

    imported = set(USED_WITHOUT_IMPORT.get(member, {})) & declared
    for item in member_imports(member):
        if item.member and item.member != member:
            imported.add(f"{NAMESPACE}-{item.member}")
        elif item.member is None and not is_stdlib(item.module):
            imported.add(_distribution(item))

    assert imported - declared - optional == set(), "imported and not declared"
    assert declared - imported - optional == set(), "declared and not imported"


def _distribution(item: Import) -> str:
    for target in reversed(item.targets):
        try:
            return distribution_of(target)
        except LookupError:
            continue
    # Not installed in this profile (torch): the distribution has the module's name.
    return requirement_name(item.module.split(".")[0])


def _third_party(texts: list[str]) -> set[str]:
    return {name for text in texts if not (name := requirement_name(text)).startswith(f"{NAMESPACE}-")}


def test_root_dependencies_are_the_union_of_the_members() -> None:
    union = set().union(*(_third_party(project(folder_of(member))["dependencies"]) for member in MEMBERS))

    assert _third_party(project(ROOT)["dependencies"]) == union


def test_root_extras_are_the_union_of_the_members() -> None:
    """The extras of the members go by the root's names; dev and torch may have more, for tests and the demo."""
    root = project(ROOT)["optional-dependencies"]
    wanted: dict[str, set[str]] = {}
    for member in MEMBERS:
        for extra, texts in project(folder_of(member)).get("optional-dependencies", {}).items():
            wanted.setdefault(extra, set()).update(_third_party(texts))

    assert {name: wanted[name] - _third_party(root.get(name, [])) for name in wanted} == {
        name: set() for name in wanted
    }
    assert _third_party(root["real"]) == wanted.get("real", set())


def test_the_rules_see_the_sources() -> None:
    """The rules above would pass on an empty folder."""
    assert all(len(files_of(member)) >= 4 for member in MEMBERS)
    assert any(item.module == "redis.asyncio" for item in member_imports("stores"))
