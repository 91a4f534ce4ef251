"""Finds the suite: flags, then the environment, then an embedded suite's folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from modelworks.client.api import AsyncModelworks
from modelworks.client.credentials import ClientCredentials, TokenSource, static_token
from modelworks.kit.errors import InvalidInput

DEFAULT_DATA = Path("modelworks-data")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the suite is and how to get a token."""

    url: str
    token: TokenSource

    def client(self) -> AsyncModelworks:
        """A client of this suite."""
        return AsyncModelworks(self.url, self.token)


@dataclass(frozen=True, slots=True)
class AdminFile:
    """What the first start of an embedded suite leaves in its folder (`admin.json`, mode 0600)."""

    url: str
    token_url: str
    client_id: str
    client_secret: str


def read_admin_file(data: Path) -> AdminFile:
    """The administrator's client of an embedded suite.

    Raises:
        InvalidInput: the folder holds no suite, or may not be read.
    """
    path = data / "admin.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        return AdminFile(**{name: str(content[name]) for name in AdminFile.__dataclass_fields__})
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist: start a suite with 'modelworks up --data {data}'") from None
    except PermissionError:
        raise InvalidInput(f"{path} may only be read by the user who started the suite") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is not the file that 'modelworks up' writes: {error!r}") from error


def connect(
    *, url: str | None, token: str | None, data: Path | None, scopes: tuple[str, ...] = (), client_id: str | None = None
) -> Connection:
    """The suite that the flags or the environment name.

    Order: `--url` with `--token`; `--data`; `MODELWORKS_URL` with `MODELWORKS_TOKEN`, or with
    `MODELWORKS_CLIENT_ID` and `MODELWORKS_CLIENT_SECRET`; the folder `modelworks-data` if it holds a suite.

    Raises:
        InvalidInput: none of them is there, or half of one.
    """
    environment = os.environ
    address = url or (None if data else environment.get("MODELWORKS_URL"))
    if address:
        bearer = token or environment.get("MODELWORKS_TOKEN")
        if bearer:
            return Connection(address.rstrip("/"), static_token(bearer))
        client = client_id or environment.get("MODELWORKS_CLIENT_ID")
        secret = environment.get("MODELWORKS_CLIENT_SECRET")
        if client and secret:
            token_url = address.rstrip("/") + "/oauth/token"
            source = ClientCredentials(token_url=token_url, client_id=client, client_secret=secret, scopes=scopes)
            return Connection(address.rstrip("/"), source)
        raise InvalidInput(
            f"no credentials for {address}: give --token, or set MODELWORKS_TOKEN, "
            "or MODELWORKS_CLIENT_ID and MODELWORKS_CLIENT_SECRET"
        )
    folder = data or (DEFAULT_DATA if (DEFAULT_DATA / "admin.json").exists() else None)
    if folder is None:
        raise InvalidInput(
            "which suite? Give --data DIR of an embedded suite, or --url and --token, or set MODELWORKS_URL"
        )
    admin = read_admin_file(folder)
    if token:
        return Connection(admin.url, static_token(token))
    secret = admin.client_secret
    if client_id and client_id != admin.client_id:
        secret = environment.get("MODELWORKS_CLIENT_SECRET", "")
        if not secret:
            raise InvalidInput(f"the secret of client {client_id!r} is needed: set MODELWORKS_CLIENT_SECRET")
    source = ClientCredentials(
        token_url=admin.token_url, client_id=client_id or admin.client_id, client_secret=secret, scopes=scopes
    )
    return Connection(admin.url, source)
