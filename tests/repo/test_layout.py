"""Rules about files: the same ones in every service, short, documented, and silent about the machine they were made on."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from modelworks.kit.settings import PlatformSettings, Settings
from modelworks.stores.settings import StoresSettings

from tests.repo.sources import NAMESPACE, ROOT, SERVICES, folder_of, package_of, text_of, tracked

EIGHT = ("domain.py", "ports.py", "handlers.py", "api.py", "stream.py", "settings.py", "app.py")
"""With the folder `adapters`, the eight parts of a service."""
TESTS = ("test_domain.py", "test_handlers.py", "test_api.py", "test_stream.py")
SECTIONS = ("Owns", "Consumes", "Emits", "Settings", "Limits")
LINES_MAX = 500
SUITE_LINES_MAX = 900
"""Of a test file: the contract suite of a port stays in one."""
LICENSED = frozenset({"LICENSE"})
GENERATED = ("deploy/requirements/", "contracts/http/", "tests/stack/poms/")

# Written in pieces, so that the rules do not find themselves.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.$}/-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "home/" + r"\w+")) + r")/[\w.]")
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("proxy", "golang", "org"),
        ("repo", "maven", "apache", "org"),
        ("repo1", "maven", "org"),
        ("deb", "debian", "org"),
        ("crates", "io"),
    )
)


def settings_of(service: str) -> type[Settings]:
    shared: dict[str, type[Settings]] = {"platform": PlatformSettings, "stores": StoresSettings}
    if service in shared:
        return shared[service]
    module = importlib.import_module(f"{NAMESPACE}.{service}.settings")
    kind: type[Settings] = getattr(module, f"{service.capitalize()}Settings")
    return kind


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_the_same_files(service: str) -> None:
    package = package_of(service)
    missing = [name for name in (*EIGHT, "__init__.py", "__main__.py", "py.typed") if not (package / name).is_file()]

    assert not missing
    assert any((package / "adapters").glob("*.py"))
    assert [name for name in TESTS if not (folder_of(service) / "tests" / name).is_file()] == []


def test_the_namespace_is_implicit() -> None:
    """INVARIANT: members install beside each other. An `__init__.py` in one `src/modelworks` would hide the others."""
    assert [str(path) for path in ROOT.glob(f"*/*/src/{NAMESPACE}/__init__.py")] == []


@pytest.mark.parametrize("service", SERVICES)
def test_readme_has_the_sections_in_order(service: str) -> None:
    text = (folder_of(service) / "README.md").read_text("utf-8")
    headings = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("## ")]

    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_is_in_the_readme_and_no_other(service: str) -> None:
    kind = settings_of(service)
    prefix = str(kind.model_config["env_prefix"])
    text = (folder_of(service) / "README.md").read_text("utf-8")
    wanted = {f"{prefix}{name}".upper() for name in kind.model_fields}

    rows = [line for line in text.splitlines() if line.startswith("|")]
    named = set(re.findall(rf"`({prefix}[A-Z0-9_]+)", "\n".join(rows)))

    assert wanted - named == set(), "not documented"
    assert named - wanted == set(), "documented, but no setting"


@pytest.mark.parametrize("owner", ["platform", "stores", *SERVICES])
def test_every_setting_has_a_description_and_no_secret_has_a_default(owner: str) -> None:
    for name, field in settings_of(owner).model_fields.items():
        assert field.description, f"{name} says nothing"
        if "SecretStr" in str(field.annotation) and not field.is_required():
            assert field.default is None or field.get_default().get_secret_value() == "", f"{name} has a default secret"


@pytest.mark.parametrize("owner", ["platform", "stores", *SERVICES])
def test_every_setting_that_is_a_number_is_bounded(owner: str) -> None:
    unbounded = [
        name
        for name, field in settings_of(owner).model_fields.items()
        if field.annotation in (int, float)
        and not any(hasattr(rule, bound) for rule in field.metadata for bound in ("ge", "gt", "le", "lt"))
    ]

    assert unbounded == []


def _text_files() -> Iterator[tuple[Path, str]]:
    for file in tracked():
        name = str(file.relative_to(ROOT))
        if name not in LICENSED and (text := text_of(file)) is not None:
            yield file, text


def test_python_files_are_short() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file, text in _text_files()
        if file.suffix == ".py"
        and (lines := text.count("\n")) >= (SUITE_LINES_MAX if "tests" in file.parts else LINES_MAX)
    }

    assert long == {}


def test_nothing_is_left_undone() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {hit.group()}" for file, text in _text_files() for hit in UNFINISHED.finditer(text)
    ]

    assert found == []


def test_no_file_names_the_machine_it_was_made_on() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {hit.group()}"
        for file, text in _text_files()
        for hit in MACHINE_PATHS.finditer(text)
    ]

    assert found == []


def test_no_file_names_a_package_registry() -> None:
    """Whoever installs uses their own mirror; also those of this machine's settings must not leak."""
    configured = {
        urlsplit(value).hostname or ""
        for name, value in os.environ.items()
        if re.fullmatch(r"(PIP|UV)_(EXTRA_)?(DEFAULT_)?INDEX(_URL)?|GOPROXY|NPM_CONFIG_REGISTRY", name, re.IGNORECASE)
    }
    hosts = {host for host in (*REGISTRIES, *configured) if "." in host}

    found = [f"{file.relative_to(ROOT)}: {host}" for file, text in _text_files() for host in hosts if host in text]

    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{file.relative_to(ROOT)}: {target}"
        for file, text in _text_files()
        if file.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
        if not (file.parent / target).exists()
    ]

    assert broken == []


def test_every_decision_is_one_page_of_the_same_form() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))

    for number, page in enumerate(pages, 1):
        text = page.read_text("utf-8")
        headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number:04}: ")
        assert headings == ["Context", "Decision", "Consequences", "Rejected", "Look again when"], page.name
        assert len(text.splitlines()) <= 60


def test_changelog_has_unreleased_on_top() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## ")]

    assert headings[0] == "## Unreleased"


def test_no_word_of_the_glossary_is_explained_twice() -> None:
    text = (ROOT / "CONTEXT.md").read_text("utf-8")
    words = [word.lower() for word in re.findall(r"^- \*\*([^*]+)\*\*", text, re.MULTILINE)]

    assert len(words) > 40
    assert sorted(set(words)) == sorted(words)
    assert "*Avoid" in text


def test_the_rules_see_the_files() -> None:
    """The rules above would pass on an empty list."""
    names = {str(file.relative_to(ROOT)) for file, _ in _text_files()}

    assert {"Makefile", "pyproject.toml", "tests/repo/test_layout.py"} <= names
    assert UNFINISHED.search("x # " + "TO" + "DO: later")
    assert MACHINE_PATHS.search("see " + "/ro" + "ot/.cache/x")
