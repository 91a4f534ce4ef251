"""The whole suite in one process: every service behind one door, on the embedded column or on real servers.

This is the composition root of the suite, as each service's `app.py` is of its
own; services are found by name and only here, since none may import another.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from modelworks.kit.errors import InvalidInput, ModelworksError
from modelworks.kit.logging import configure_logging, get_logger
from modelworks.kit.platform import Platform, make_platform
from modelworks.kit.service import Service, listen, run_until_stopped, serve
from modelworks.kit.settings import PlatformSettings
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores
from pydantic import ValidationError

log = get_logger("up")

ADMIN_CLIENT = "admin"
_CALLERS = ("optimizer", "inference")
"""Services that call others, and so need a client of their own."""


@dataclass(frozen=True)
class Secrets:
    """What the suite keeps for itself in `secrets.json` (mode 0600); variables of the environment come first."""

    auth_master_key: str
    audit_signing_key: str
    admin_client_secret: str


_VARIABLES = {
    "auth_master_key": "AUTH_MASTER_KEY",
    "audit_signing_key": "AUDIT_SIGNING_KEY",
    "admin_client_secret": "AUTH_ADMIN_CLIENT_SECRET",
}


def run_suite(
    *,
    data: Path,
    host: str,
    port: int,
    column: Literal["embedded", "real"] | str,
    on_ready: Callable[[str], None],
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        on_ready: called once with the suite's address, when requests can be answered.

    Raises:
        InvalidInput: the data folder cannot be used, or a setting is missing or wrong.
        ModelworksError: the port is in use.
    """
    # Workers run in folders of their own, where a relative path would lead elsewhere.
    data = data.absolute()
    _prepare(data)
    shared = _settings(PlatformSettings, host=host, port=port)
    configure_logging(level=shared.log_level, style=shared.log_format)
    sock = listen(host, port)
    address = _address(host, sock.getsockname()[1])
    shared = shared.model_copy(update={"issuer": shared.issuer or address, "port": sock.getsockname()[1]})
    keys = _secrets(data)
    # Keys are read over loopback whatever the public issuer is called.
    shared = shared.model_copy(update={"jwks_url": shared.jwks_url or f"{address}/.well-known/jwks.json"})
    platform = make_platform(shared, process="modelworks")
    stores = open_stores(_settings(StoresSettings, column=column, data=data / "stores"), environment=shared.environment)
    if stores.presigned is not None:
        stores.presigned.base_url = f"{address}/objects"
    services = compose(stores, platform, address=address, data=data, keys=keys)
    door = services[-1]

    def ready() -> None:
        _write_admin_file(data, url=address, secret=keys.admin_client_secret)
        on_ready(address)

    async def main() -> None:
        try:
            await serve(door.app, sock, services=services, on_ready=ready)
        finally:
            await stores.close()
            platform.telemetry.shutdown()

    run_until_stopped(main)


def compose(stores: Stores, platform: Platform, *, address: str, data: Path, keys: Secrets) -> list[Service]:
    """The services in the order of their start; the edge last."""
    # A restarted process proves itself with fresh secrets; auth takes them over at its start.
    callers = {name: secrets.token_urlsafe(32) for name in _CALLERS}

    def calling(name: str) -> dict[str, Any]:
        return {
            "registry_url": address,
            "token_url": f"{address}/oauth/token",
            "client_id": name,
            "client_secret": callers[name],
        }

    given: dict[str, dict[str, Any]] = {
        "auth": {
            "master_key": keys.auth_master_key,
            "admin_client_id": ADMIN_CLIENT,
            "admin_client_secret": keys.admin_client_secret,
            "service_clients": {name: {"secret": secret, "roles": ["service"]} for name, secret in callers.items()},
        },
        "registry": {},
        "audit": {"signing_key": keys.audit_signing_key},
        "optimizer": calling("optimizer") | {"work_folder": data / "optimizer"},
        "inference": calling("inference") | {"cache": data / "models"},
    }
    services: dict[str, Service] = {}
    for name, values in given.items():
        app = import_module(f"modelworks.{name}.app")
        settings_class = getattr(import_module(f"modelworks.{name}.settings"), f"{name.capitalize()}Settings")
        settings = _settings(settings_class, **values)
        log.info("service.settings", service=name, **settings.public())
        services[name] = app.build(stores, settings, platform)
    edge = import_module("modelworks.edge.app")
    edge_settings = _settings(import_module("modelworks.edge.settings").EdgeSettings)
    return [*services.values(), edge.build(stores, edge_settings, platform, local=services)]


def _settings(kind: Any, **values: Any) -> Any:
    """Settings from values given here and from the environment.

    Raises:
        InvalidInput: one is missing or wrong; the message names its variable.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = f"{kind.model_config.get('env_prefix', '')}{'_'.join(str(part) for part in first['loc'])}".upper()
        raise InvalidInput(f"setting {name}: {first['msg']}") from error


def _address(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def _prepare(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
        probe = data / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InvalidInput(
            f"data folder {data} cannot be written ({error.strerror}): choose another with --data, or mend its permissions"
        ) from error


def _secrets(data: Path) -> Secrets:
    """The kept secrets, made at the first start."""
    path = data / "secrets.json"
    try:
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if not isinstance(kept, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} cannot be read ({error}): restore it from a backup, or choose another --data"
        ) from error
    fresh = asdict(make_secrets())
    made = {name: str(os.environ.get(_VARIABLES[name]) or kept.get(name) or fresh[name]) for name in fresh}
    if made != kept:
        _write_private(path, json.dumps(made, indent=2) + "\n")
    return Secrets(**made)


def make_secrets() -> Secrets:
    """Fresh ones."""
    signing_key = import_module("modelworks.audit.tlog.note").generate_key("modelworks-audit")
    return Secrets(secrets.token_urlsafe(32), str(signing_key), secrets.token_urlsafe(32))


def _write_admin_file(data: Path, *, url: str, secret: str) -> None:
    content = {"url": url, "token_url": f"{url}/oauth/token", "client_id": ADMIN_CLIENT, "client_secret": secret}
    _write_private(data / "admin.json", json.dumps(content, indent=2) + "\n")


def _write_private(path: Path, text: str) -> None:
    """Write for the owner's eyes only; whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ModelworksError(f"{path} cannot be written: {error.strerror}") from error
