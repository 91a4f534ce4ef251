"""A leaf as a document that people search: OCSF fields beside the event's own, all computed from the leaf alone.

OCSF (ocsf.io) names what a security team's tools know: class, activity,
status, actor, time. The computation is pure and total, so that the sweep and an
auditor can do it again and compare. Standard library only.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelworks.audit.entry import Entry

Outcome = Literal["success", "failure", "denied"]

_OCSF_VERSION = "1.3.0"
_DATA_SURE_BYTES = 256 * 1024
"""A body of this size cannot grow past the next bound by being written as JSON again."""
_DATA_BYTES_MAX = 3 * 1024 * 1024
"""Above, the document goes without the event's properties: a store takes 4 MiB."""
_TEXT_CHARACTERS_MAX = 4_000

_CLASSES = {
    3001: "Account Change",
    3002: "Authentication",
    3004: "Entity Management",
    6002: "Application Lifecycle",
    6003: "API Activity",
    6005: "Datastore Activity",
}
_CATEGORIES = {3: "Identity & Access Management", 6: "Application Activity"}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type of event reads in OCSF."""

    class_uid: int
    activity_id: int
    activity: str
    """OCSF's caption of the activity."""
    did: str
    """What the actor did, in words."""


KINDS: Mapping[str, Kind] = {
    "registry.repository-created.v1": Kind(6005, 6, "Create", "created repository"),
    "registry.revision-committed.v1": Kind(6005, 5, "Write", "committed to"),
    "registry.ref-moved.v1": Kind(6005, 2, "Update", "moved a ref of"),
    "registry.upload-refused.v1": Kind(6005, 5, "Write", "was refused an upload to"),
    "optimizer.job-accepted.v1": Kind(6003, 1, "Create", "started an optimization of"),
    "optimizer.variant-built.v1": Kind(6003, 3, "Update", "built a variant of"),
    "optimizer.job-failed.v1": Kind(6003, 3, "Update", "failed to optimize"),
    "optimizer.job-cancelled.v1": Kind(6003, 4, "Delete", "cancelled an optimization of"),
    "inference.deployment-requested.v1": Kind(6002, 6, "Enable", "deployed"),
    "inference.deployment-removed.v1": Kind(6002, 7, "Disable", "removed the deployment of"),
    "inference.model-loaded.v1": Kind(6002, 3, "Start", "loaded"),
    "inference.model-load-failed.v1": Kind(6002, 3, "Start", "failed to load"),
    "inference.model-unloaded.v1": Kind(6002, 4, "Stop", "unloaded"),
    "inference.prediction-completed.v1": Kind(6003, 2, "Read", "predicted with"),
    "auth.client-created.v1": Kind(3001, 1, "Create", "created client"),
    "auth.client-deleted.v1": Kind(3001, 6, "Delete", "deleted client"),
    "auth.token-issued.v1": Kind(3002, 1, "Logon", "got a token as"),
    "auth.token-refused.v1": Kind(3002, 1, "Logon", "was refused a token as"),
    "auth.access-denied.v1": Kind(6003, 99, "Other", "was denied"),
    "auth.key-rotated.v1": Kind(3004, 3, "Update", "rotated the signing key to"),
    "ingest.prediction-requested.v1": Kind(6003, 1, "Create", "asked for predictions of"),
    "ingest.optimization-requested.v1": Kind(6003, 1, "Create", "asked for a variant of"),
}
_OTHER = Kind(6003, 99, "Other", "caused")

_DENIED = frozenset({"auth.access-denied.v1", "auth.token-refused.v1", "registry.upload-refused.v1"})
_FAILED = frozenset({"optimizer.job-failed.v1", "inference.model-load-failed.v1"})
_STATUS = {"success": (1, "Success"), "failure": (2, "Failure"), "denied": (2, "Failure")}
_SEVERITY = {"success": (1, "Informational"), "failure": (2, "Low"), "denied": (3, "Medium")}
_RESOURCES = ("resource", "model", "repository", "client", "key_id")
"""Properties that name what an event is about; the first that is there."""
_TYPED = re.compile(r"([A-Z][A-Za-z]*):")
"""Refusals name their resource with its policy type before it, as `Repository:acme/filetype`."""
_TOLD = ("action", "reason", "detail", "error", "status", "verdict", "ref", "branch", "recipe", "scope", "roles")
"""Properties that the message repeats."""


def document_id(index: int) -> str:
    """The document's id: the leaf's index, so that a second document of a leaf cannot exist."""
    return f"{index:020d}"


def document(index: int, leaf: bytes, entry: Entry, body: bytes | None = None) -> dict[str, Any]:
    """The document of a leaf.

    Args:
        entry: what the leaf says (`decode_leaf`).
        body: the event's body when the leaf says it is stored beside the log.
    """
    data = entry.data(body)
    outcome, resource = outcome_of(entry, data), resource_of(entry, data)
    message = message_of(entry, data, resource)
    found: dict[str, Any] = {
        **_ocsf(entry, outcome),
        "status_detail": _detail(data or {}),
        "message": message,
        "outcome": outcome,
        "resource": {"name": resource, "type": _resource_type(data)},
        "event": {
            "index": index,
            "key": entry.key,
            "id": entry.id,
            "type": entry.type,
            "source": entry.source,
            "subject": entry.subject,
            "at": entry.at,
            "trace": entry.trace,
            "kept": entry.kept,
            "sha256": entry.sha256,
            "size_bytes": entry.size_bytes,
        },
        "text": _text(entry, data),
        "leaf": base64.b64encode(leaf).decode(),
    }
    if data is not None and (entry.size_bytes <= _DATA_SURE_BYTES or len(json.dumps(data)) <= _DATA_BYTES_MAX):
        found["data"] = data
    return found


def outcome_of(entry: Entry, data: Mapping[str, Any] | None) -> Outcome:
    """Whether it was done, failed, or was refused."""
    if entry.type in _DENIED:
        return "denied"
    if entry.type in _FAILED or (data or {}).get("status") in ("failed", "expired"):
        return "failure"
    return "success"


def resource_of(entry: Entry, data: Mapping[str, Any] | None) -> str:
    """What it was about."""
    for name in _RESOURCES:
        value = (data or {}).get(name)
        if isinstance(value, str) and value:
            return _TYPED.sub("", value) or value
    return entry.subject or entry.type


def message_of(entry: Entry, data: Mapping[str, Any] | None, resource: str) -> str:
    """One line for people: who did what to what, and why it was refused or how it ended."""
    said = f"{entry.actor} {KINDS.get(entry.type, _OTHER).did} {resource}"
    told = [f"{name}: {' '.join(_scalars(data[name]))}" for name in _TOLD if data and data.get(name)]
    return "; ".join([said, *told])[:_TEXT_CHARACTERS_MAX]


def _resource_type(data: Mapping[str, Any] | None) -> str:
    named = next((name for name in _RESOURCES if (data or {}).get(name)), "model")
    if named == "resource":
        typed = _TYPED.match(str((data or {})["resource"]))
        return typed[1].lower() if typed else "request"
    return "key" if named == "key_id" else named


def _detail(data: Mapping[str, Any]) -> str:
    """OCSF's status detail: the code of the reason, short enough to be counted."""
    error = data.get("error")
    found = data.get("reason") or (error.get("code") if isinstance(error, dict) else error) or data.get("status") or ""
    return found[:200] if isinstance(found, str) else ""


def _ocsf(entry: Entry, outcome: Outcome) -> dict[str, Any]:
    kind = KINDS.get(entry.type, _OTHER)
    happened = entry.happened_at
    status_id, status = _STATUS[outcome]
    severity_id, severity = _SEVERITY[outcome]
    return {
        "class_uid": kind.class_uid,
        "class_name": _CLASSES[kind.class_uid],
        "category_uid": kind.class_uid // 1000,
        "category_name": _CATEGORIES[kind.class_uid // 1000],
        "activity_id": kind.activity_id,
        "activity_name": kind.activity,
        "type_uid": kind.class_uid * 100 + kind.activity_id,
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "time": int(happened.timestamp() * 1000),
        "time_dt": happened.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "actor": {"user": {"name": entry.actor}},
        "metadata": {
            "uid": entry.id,
            "version": _OCSF_VERSION,
            "log_name": entry.type,
            "product": {"name": "Modelworks", "vendor_name": "Modelworks", "feature": {"name": entry.source}},
        },
    }


def _text(entry: Entry, data: Mapping[str, Any] | None) -> str:
    """What is searched for words beside the message: type, actor, subject, then the event's properties."""
    parts = [entry.type, entry.actor, entry.subject, entry.source, entry.id]
    length = sum(map(len, parts))
    for scalar in _scalars(data or {}):
        length += len(scalar) + 1
        if length > _TEXT_CHARACTERS_MAX:
            break
        parts.append(scalar)
    return " ".join(part for part in parts if part)


def _scalars(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _scalars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner)
    elif value is not None:
        yield str(value).lower() if isinstance(value, bool) else str(value)
