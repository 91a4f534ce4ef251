"""Composition root of audit: the only file that names concrete adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from modelworks.audit.adapters.index_documents import DocumentIndex
from modelworks.audit.adapters.lease_keyvalue import KeyValueLease
from modelworks.audit.adapters.log_objects import ObjectLog
from modelworks.audit.api import router
from modelworks.audit.handlers import Auditing
from modelworks.audit.metrics import Metrics
from modelworks.audit.proving import Prover
from modelworks.audit.sequencer import Announce, Sequencer
from modelworks.audit.settings import AuditSettings
from modelworks.audit.stream import Intake, Turn
from modelworks.audit.sweep import IndexAudit
from modelworks.audit.tlog.note import SignedCheckpoint, Signer, VerificationError
from modelworks.audit.watch import Watch
from modelworks.events import CheckpointSigned, Envelope
from modelworks.kit.clock import Clock
from modelworks.kit.errors import InvalidInput, ModelworksError
from modelworks.kit.http import create_app
from modelworks.kit.logging import get_logger
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service, run_service, settings_or_exit
from modelworks.kit.settings import PlatformSettings
from modelworks.stores import Bus
from modelworks.stores.outbox import message_of
from modelworks.stores.refusals import Refusals
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

log = get_logger("audit")


def build(stores: Stores, settings: AuditSettings, platform: Platform, *, owns_stores: bool = False) -> Service:
    """The audit service.

    Args:
        owns_stores: close them at the end.

    Raises:
        InvalidInput: the signing key is none, or is of another log.
    """
    signer = _signer(settings)
    log_files, index = ObjectLog(stores.objects), DocumentIndex(stores.documents)
    prover = Prover(log_files, signer.verifier, tiles_max=settings.tiles_max)
    metrics = Metrics(platform.telemetry.metrics)
    sequencer = Sequencer(
        log=log_files, index=index, signer=signer, announce=_announcer(stores.bus, platform.clock),
        window=settings.window, bytes_max=settings.batch_bytes_max,
    )  # fmt: skip
    lease = timedelta(milliseconds=settings.lease_ms)
    turn = Turn(
        bus=stores.bus, index=index, lease=KeyValueLease(stores.keyvalue, expires=lease), sequencer=sequencer,
        intake=Intake(sequencer, tracer=platform.telemetry.tracer("audit"), metrics=metrics),
        batch_max=settings.batch_max, every=lease / 3,
    )  # fmt: skip
    watch = Watch(
        bus=stores.bus, audit=IndexAudit(log=log_files, index=index, prover=prover), turn=turn, metrics=metrics,
        clock=platform.clock, seconds=settings.check_seconds, leaves=settings.check_leaves,
    )  # fmt: skip

    async def sequencing() -> None:
        turn.check()

    checks = {"objects": stores.objects.check, "documents": stores.documents.check, "sequencer": sequencing}
    auditing = Auditing(log=log_files, index=index, prover=prover)
    app = create_app(
        "audit", platform, routers=[router(auditing, watch, signer.verifier.vkey, platform)], checks=checks,
        record=Refusals(stores.bus, service="audit", clock=platform.clock),
        description="The tamper-evident log: who did what, with proofs.",
    )  # fmt: skip

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if owns_stores:
                stack.push_async_callback(stores.close)
            await stack.enter_async_context(watch.running())
            await stack.enter_async_context(turn.running())
            yield

    return Service("audit", app, run, checks)


def _signer(settings: AuditSettings) -> Signer:
    try:
        signer = Signer(settings.signing_key.get_secret_value())
    except VerificationError as error:
        raise InvalidInput(f"AUDIT_SIGNING_KEY: {error}. Make one with: python -m modelworks.audit keygen") from error
    if settings.origin not in ("", signer.name):
        raise InvalidInput(
            f"AUDIT_SIGNING_KEY signs for the log {signer.name!r}, AUDIT_ORIGIN wants {settings.origin!r}"
        )
    return signer


def _announcer(bus: Bus, clock: Clock) -> Announce:
    async def announce(checkpoint: SignedCheckpoint) -> None:
        event = CheckpointSigned(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex())
        envelope = Envelope(
            event=event, id=f"{checkpoint.origin}:{checkpoint.size}", source="/services/audit", time=clock(),
        )  # fmt: skip
        try:
            await bus.publish([message_of(envelope)])
        except ModelworksError as error:
            # The checkpoint itself is the truth and can be read by anybody; the next one is announced again.
            log.warning("audit.checkpoint-not-announced", size=checkpoint.size, error=error.message)

    return announce


def main() -> None:
    """Run audit in a process of its own."""
    settings = settings_or_exit("audit", AuditSettings)

    def compose(platform: Platform) -> Service:
        stores = open_stores(
            settings_or_exit("audit", StoresSettings),
            environment=settings_or_exit("audit", PlatformSettings).environment,
        )
        return build(stores, settings, platform, owns_stores=True)

    run_service("audit", settings, compose)
