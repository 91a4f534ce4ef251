"""Commands and events: load, decide, save. Events leave with the state they tell of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from modelworks.events import RefMoved
from modelworks.inference.card import CARD, MANIFEST, read_wishes
from modelworks.inference.domain import (
    Change,
    Deployment,
    Source,
    cannot_follow,
    choose_artifact,
    choose_batching,
    failure,
    follow,
    remove_deployment,
    request_deployment,
)
from modelworks.inference.ports import Deployments, ModelSource, Ownership, Presence, Versioned
from modelworks.kit.clock import Clock
from modelworks.kit.errors import Conflict, InvalidInput, NotFound, TooLarge, VersionConflict

_CARD_BYTES_MAX = 256 * 1024
_SAVE_ATTEMPTS = 10


class Deploying:
    """What is served."""

    def __init__(
        self, *, source: ModelSource, deployments: Deployments, presence: Presence, worker: str, clock: Clock
    ) -> None:
        self._source = source
        self._deployments = deployments
        self._presence = presence
        self._worker = worker
        self._clock = clock

    async def ownership(self, model: str) -> Ownership:
        """Whose repository a model is.

        Raises:
            NotFound, Unavailable: as ModelSource.
        """
        return await self._source.ownership(model)

    async def deploy(self, model: str, ref: str, *, pinned: bool, by: str) -> Deployment:
        """Serve what `ref` points to, and follow it.

        Raises:
            NotFound: no such repository or ref.
            InvalidInput: the revision holds no model that can be told.
        """
        source = await self._source_of(model, ref)
        at = self._clock()

        def decide(before: Deployment | None) -> Change[Deployment]:
            return request_deployment(before, model=model, source=source, pinned=pinned, by=by, at=at)

        saved = await self._change(model, decide, actor=by)
        # A move of the ref between the look above and the save was told to nobody: look again.
        again = await self._source_of(model, ref)
        if again.revision != source.revision:
            saved = await self._change(model, lambda before: follow(_present(before, model), again, at=at), actor=by)
        return await self._seen(saved)

    async def remove(self, model: str, *, by: str) -> None:
        """Stop serving a model.

        Raises:
            NotFound: it is not deployed.
        """

        def decide(before: Deployment | None) -> Change[Deployment]:
            return remove_deployment(_present(before, model), at=self._clock())

        await self._change(model, decide, actor=by)

    async def get(self, model: str) -> Deployment:
        """A deployment with the workers that are alive.

        Raises:
            NotFound: it is not deployed.
        """
        found = await self._deployments.get(model)
        return await self._seen(_present(found.state if found else None, model))

    async def all(self) -> list[Deployment]:
        """All deployments, by model."""
        return [await self._seen(deployment) for deployment in await self._deployments.all()]

    async def follow_ref(self, event: RefMoved, *, actor: str) -> None:
        """A ref moved: a deployment that follows it moves too. Told again, it changes nothing."""
        found = await self._deployments.get(event.repository)
        if found is None or found.state.removed or found.state.ref != event.ref or event.new is None:
            return
        try:
            source = await self._source_of(event.repository, event.ref)
        except NotFound:
            # Deleted since: what is served stays.
            return
        except (InvalidInput, TooLarge) as error:
            refused, revision = failure(error), event.new

            def stay(before: Deployment | None) -> Change[Deployment]:
                present = _present(before, event.repository)
                return cannot_follow(present, revision, refused, worker=self._worker, at=self._clock())

            await self._change(event.repository, stay, actor=actor)
            return

        def move(before: Deployment | None) -> Change[Deployment]:
            present = _present(before, event.repository)
            return follow(present, source, at=self._clock()) if present.ref == event.ref else Change(present)

        await self._change(event.repository, move, actor=actor)

    async def _source_of(self, model: str, ref: str) -> Source:
        found = await self._source.resolve(model, ref)
        wanted = next((path for path in (MANIFEST, CARD) if path in found.files), None)
        said: dict[str, bytes] = {}
        if wanted is not None:
            said[wanted] = await self._source.read(model, found.revision, wanted, bytes_max=_CARD_BYTES_MAX)
        wishes = read_wishes(said)
        return Source(ref, found.revision, choose_artifact(found.files, wishes), choose_batching(wishes))

    async def _change(
        self, model: str, decide: Callable[[Deployment | None], Change[Deployment]], *, actor: str
    ) -> Deployment:
        """Decide on the newest state and save; decided again when somebody else was faster."""
        for _ in range(_SAVE_ATTEMPTS):
            found: Versioned[Deployment] | None = await self._deployments.get(model)
            change = decide(found.state if found else None)
            if found is not None and change.state == found.state and not change.events:
                return found.state
            try:
                saved = await self._deployments.save(change, expected=found.version if found else None, actor=actor)
            except VersionConflict:
                await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311 - to part from the others, not a secret
            else:
                return saved.state
        raise Conflict(f"deployment {model!r} is being changed by many at once: try again")

    async def _seen(self, deployment: Deployment) -> Deployment:
        return deployment.seen_by(await self._presence.alive(deployment.workers))


def _present(deployment: Deployment | None, model: str) -> Deployment:
    if deployment is None or deployment.removed:
        raise NotFound(f"model {model!r} is not deployed")
    return deployment
