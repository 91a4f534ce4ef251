"""The sweep: what a crash left unpublished is announced when the registry runs again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from modelworks.events import Envelope, RepositoryCreated
from modelworks.kit.clock import utc_now
from modelworks.kit.errors import StoreUnavailable
from modelworks.registry.adapters.documents import DocumentRepositories, body_of
from modelworks.registry.domain import Creation, Entry, Repository
from modelworks.registry.stream import running
from modelworks.stores import Bus, Message
from modelworks.stores.stores import Stores


class DeadBus:
    """A bus that is down: what a process that dies between save and publish looks like to the documents."""

    async def publish(self, messages: Sequence[Message]) -> None:
        raise StoreUnavailable("the bus is down")


def repositories(stores: Stores, *, bus: Bus | None = None, late: timedelta = timedelta()) -> DocumentRepositories:
    return DocumentRepositories(documents=stores.documents, bus=bus or stores.bus, clock=lambda: utc_now() + late)


async def save(over: DocumentRepositories, name: str) -> None:
    creation = Creation(repository=name, kind="model", private=False, owner="ada", description="", space="shared/acme")
    entry = Entry(sequence=0, time="2026-01-31T12:00:00.000000Z", actor="ada", creation=creation)
    repository, events = Repository.created(entry)
    await over.save(repository, events, expected=None, actor="ada")


async def test_events_that_a_crash_left_are_announced_by_the_next_start(
    stores: Stores, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    dying = repositories(stores, bus=DeadBus(), late=timedelta(minutes=-1))  # type: ignore[arg-type]
    await dying.ensure()
    await save(dying, "acme/m")
    assert heard == []

    async with running(repositories(stores), every=timedelta(milliseconds=20)):
        await eventually(lambda: heard)

    assert [(e.event, e.actor) for e in heard] == [
        (RepositoryCreated(repository="acme/m", kind="model", private=False), "ada")
    ]


async def test_a_second_start_finds_what_the_first_made(stores: Stores) -> None:
    async with running(repositories(stores), every=timedelta(seconds=1)):
        await save(repositories(stores), "acme/m")

    async with running(repositories(stores), every=timedelta(seconds=1)):
        assert await repositories(stores).get("acme/m") is not None


async def test_a_document_says_what_its_repository_is(stores: Stores) -> None:
    async with running(repositories(stores), every=timedelta(seconds=1)):
        await save(repositories(stores), "Acme/ResNet-50.v2")

    loaded = await repositories(stores).get("Acme/ResNet-50.v2")
    assert loaded is not None
    assert body_of(loaded.repository)["index"] == {
        "namespace": "Acme", "readers": ["public"], "words": "Acme ResNet-50.v2 ResNet 50 v2",
    }  # fmt: skip
    assert await repositories(stores).get("acme/resnet-50.v2") is None
    assert await repositories(stores).spelled("acme/resnet-50.v2") == "Acme/ResNet-50.v2"


async def test_the_outbox_of_the_registry_names_its_source(
    stores: Stores, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    async with running(repositories(stores), every=timedelta(seconds=1)):
        await save(repositories(stores), "acme/m")
        await eventually(lambda: heard)

    assert (heard[0].source, heard[0].key) == ("/services/registry", "acme/m")
