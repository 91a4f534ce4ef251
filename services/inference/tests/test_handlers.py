"""Deployments come up, move, roll back, make room and come back, on the embedded column with a registry in memory."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelworks.events import (
    DeploymentRequested,
    Envelope,
    ModelLoaded,
    ModelLoadFailed,
    ModelUnloaded,
    RefMoved,
)
from modelworks.inference.adapters.cache import FolderCache
from modelworks.inference.domain import Artifact
from modelworks.inference.engine.session_onnx import OnnxSession
from modelworks.kit.clock import utc_now
from modelworks.kit.errors import TooLarge, Unavailable
from modelworks.stores.outbox import message_of


async def status(running: Any, model: str) -> dict[str, Any]:
    answer = await running.http.get(f"/api/v1/deployments/{model}")
    return answer.json()  # type: ignore[no-any-return]


async def predict(running: Any, model: str, value: float = 1.0) -> Any:
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [value] * 3}]}
    answer = await running.http.post(f"/oip/v2/models/{model}/infer", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"][0]


async def move(stores: Any, registry: Any, model: str, files: dict[str, bytes], *, ref: str = "main") -> str:
    """Commit and tell, as the registry does."""
    old = registry.refs.get((model, ref))
    new = registry.commit(model, files, ref=ref)
    event = RefMoved(repository=model, kind="branch", ref=ref, old=old, new=new)
    id = hashlib.sha256(new.encode()).hexdigest()[:32]
    await stores.bus.publish([message_of(Envelope(event, id, "/services/registry", utc_now(), actor="ann"))])
    return new


# --- up, down, and back -------------------------------------------------------------------------------------


async def test_deployment_comes_up_and_is_told(
    serve: Any, deploy: Any, onnx_models: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        revision = await deploy(running, "acme/affine", onnx_models.affine())

        told = await status(running, "acme/affine")
        await eventually(lambda: heard(ModelLoaded))

    worker = told["workers"][0]
    assert (told["status"], told["revision"], told["ref"]) == ("ready", revision, "main")
    assert (worker["worker"], worker["provider"], worker["serving"]) == ("worker-1", "CPUExecutionProvider", revision)
    assert heard(ModelLoaded)[0].event.sha256 == hashlib.sha256(onnx_models.affine()).hexdigest()
    assert heard(DeploymentRequested)[0].actor == "tester"


async def test_removed_deployment_is_unloaded_and_told(
    serve: Any, deploy: Any, onnx_models: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        answer = await running.http.delete("/api/v1/deployments/acme/affine")

        assert answer.status_code == 204
        await eventually(lambda: running.parts.models.peek("acme/affine") is None)
        await eventually(lambda: heard(ModelUnloaded))
        assert (await running.http.get("/api/v1/deployments/acme/affine")).status_code == 404
        assert (await running.http.get("/api/v1/deployments")).json()["items"] == []
    assert heard(ModelUnloaded)[0].event.reason == "removed"


async def test_restarted_worker_brings_its_models_back(
    serve: Any, deploy: Any, onnx_models: Any, registry: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

    async with serve() as running:
        answer = await running.http.get("/api/v1/deployments/acme/affine", headers={"Prefer": "wait=10"})

        assert answer.json()["status"] == "ready"
        assert await predict(running, "acme/affine") == 3.0
    assert registry.downloads == 1


async def test_worker_that_just_started_says_so_instead_of_not_found(
    serve: Any, stores: Any, settings: Any, platform: Any, registry: Any
) -> None:
    from modelworks.inference.app import Composition
    from modelworks.inference.engine.errors import ModelNotReady

    parts = Composition(stores, settings, platform, source=registry)

    with pytest.raises(ModelNotReady):
        parts.models.get("acme/affine")


async def test_removal_while_the_worker_was_away_is_found(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        found = await running.parts.deployments.get("acme/affine")
    await running.parts.deploying.remove("acme/affine", by="ann")

    async with serve() as running:
        answer = await running.http.get("/oip/v2/models/acme/affine/ready")

        assert found is not None
        assert answer.status_code == 400
        assert running.parts.models.peek("acme/affine") is None


async def test_second_request_of_the_same_changes_nothing(
    serve: Any, deploy: Any, onnx_models: Any, heard: Any, registry: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        again = await running.http.post("/api/v1/deployments", json={"model": "acme/affine"})
        await predict(running, "acme/affine")

        assert again.status_code == 202
    assert len(heard(DeploymentRequested)) == 1
    assert registry.downloads == 1


# --- refs ---------------------------------------------------------------------------------------------------


async def test_moved_ref_switches_under_load_without_a_failed_request(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, registry: Any, heard: Any, eventually: Any
) -> None:
    """INVARIANT: a switch is one step: every request is answered, by the old revision or by the new one."""
    async with serve() as running:
        old = await deploy(running, "acme/affine", onnx_models.affine(factor=2))
        stop = asyncio.Event()
        seen: list[float] = []

        async def caller() -> None:
            while not stop.is_set():
                seen.append(await predict(running, "acme/affine"))

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        await eventually(lambda: len(seen) > 10)
        new = await move(stores, registry, "acme/affine", {"model.onnx": onnx_models.affine(factor=10)})
        await eventually(lambda: seen[-1:] == [11.0] and seen.count(11.0) > 10)
        stop.set()
        await asyncio.gather(*callers)

        assert set(seen) == {3.0, 11.0}
        await eventually(lambda: [event.event.reason for event in heard(ModelUnloaded)] == ["replaced"])
        told = await status(running, "acme/affine")
    assert (told["revision"], told["status"]) == (new, "ready")
    assert heard(ModelUnloaded)[0].event.revision == old
    assert heard(DeploymentRequested)[-1].actor == "ann"


async def test_revision_that_cannot_be_loaded_leaves_the_old_one_serving(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, registry: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        old = await deploy(running, "acme/affine", onnx_models.affine())

        new = await move(stores, registry, "acme/affine", {"model.onnx": b"not a model"})
        await eventually(lambda: heard(ModelLoadFailed))
        told = await status(running, "acme/affine")

        assert await predict(running, "acme/affine") == 3.0
        assert (told["status"], told["revision"], told["workers"][0]["serving"]) == ("failed", new, old)
        assert told["error"]["code"] == "model-refused"
        better = await move(stores, registry, "acme/affine", {"model.onnx": onnx_models.affine(factor=5)})
        await eventually(lambda: running.parts.models.get("acme/affine").revision == better)
    assert len(heard(ModelLoadFailed)) == 1


async def test_revision_without_a_model_leaves_the_old_one_and_says_so(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, registry: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        await move(stores, registry, "acme/affine", {"weights.bin": b"x"})
        await eventually(lambda: heard(ModelLoadFailed))
        told = await status(running, "acme/affine")

        assert await predict(running, "acme/affine") == 3.0
        assert "no file ends in .onnx" in told["error"]["message"]


async def test_other_refs_and_repeated_moves_change_nothing(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, registry: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        revision = await deploy(running, "acme/affine", onnx_models.affine())
        await move(stores, registry, "acme/affine", {"model.onnx": onnx_models.affine(factor=9)}, ref="dev")
        event = RefMoved(repository="acme/affine", kind="branch", ref="main", new=revision)
        for _ in range(2):
            await stores.bus.publish([message_of(Envelope(event, "same", "/services/registry", utc_now()))])
        moved = await move(stores, registry, "acme/affine", {"model.onnx": onnx_models.affine(factor=4)})

        await eventually(lambda: running.parts.models.get("acme/affine").revision == moved)
    assert [event.event.revision for event in heard(DeploymentRequested)] == [revision, moved]


# --- what goes wrong ----------------------------------------------------------------------------------------


async def test_damaged_download_is_refused_and_tried_again(
    serve: Any, registry: Any, onnx_models: Any, heard: Any, eventually: Any
) -> None:
    registry.damaged = True
    async with serve() as running:
        registry.commit("acme/affine", {"model.onnx": onnx_models.affine()})
        await running.http.post("/api/v1/deployments", json={"model": "acme/affine"})
        await eventually(lambda: heard(ModelLoadFailed))
        failed = await status(running, "acme/affine")
        refused = await running.http.get("/oip/v2/models/acme/affine")

        registry.damaged = False
        await eventually(lambda: running.parts.models.peek("acme/affine") is not None)

    assert failed["status"] == "failed"
    assert "damaged" in failed["error"]["message"]
    assert refused.status_code == 503
    assert "damaged" in refused.json()["error"]


async def test_file_damaged_in_the_cache_is_fetched_anew(
    serve: Any, deploy: Any, onnx_models: Any, settings: Any, registry: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
    (file,) = settings.cache.rglob("model")
    file.write_bytes(b"tampered with")

    async with serve() as running:
        answer = await running.http.get("/api/v1/deployments/acme/affine", headers={"Prefer": "wait=10"})

    assert answer.json()["status"] == "ready"
    assert registry.downloads == 2


@pytest.mark.parametrize(
    ("body", "status_code"),
    [
        ({"model": "acme/none"}, 404),
        ({"model": "acme/affine", "ref": "nope"}, 404),
        ({"model": "acme/empty"}, 400),
        ({"model": "no-slash"}, 400),
        ({"model": "acme/affine", "ref": ""}, 400),
        ({"model": "acme/affine", "colour": "red"}, 400),
        ({}, 400),
    ],
)
async def test_what_cannot_be_deployed_is_refused_at_once(
    serve: Any, registry: Any, onnx_models: Any, body: Any, status_code: int
) -> None:
    registry.commit("acme/affine", {"model.onnx": onnx_models.affine()})
    registry.commit("acme/empty", {"notes.txt": b"x"})
    async with serve() as running:
        answer = await running.http.post("/api/v1/deployments", json=body)

        assert answer.status_code == status_code, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


async def test_registry_that_is_away_is_told_as_unavailable(serve: Any, registry: Any) -> None:
    registry.down = True
    async with serve() as running:
        answer = await running.http.post("/api/v1/deployments", json={"model": "acme/affine"})

    assert answer.status_code == 503


async def test_private_repository_is_deployed_by_its_owner_only(
    serve: Any, registry: Any, onnx_models: Any, issuer: Any
) -> None:
    registry.commit("acme/secret", {"model.onnx": onnx_models.affine()})
    registry.private["acme/secret"] = "owner"
    body = {"model": "acme/secret"}
    async with serve() as running:
        other = await running.http.post("/api/v1/deployments", json=body, headers=issuer.headers("other", "operator"))
        v2 = await running.http.post(
            "/oip/v2/repository/models/acme/secret/load", headers=issuer.headers("other", "operator")
        )
        owner = await running.http.post("/api/v1/deployments", json=body, headers=issuer.headers("owner", "operator"))
        consumer = await running.http.post("/api/v1/deployments", json=body, headers=issuer.headers("c", "consumer"))

    assert [answer.status_code for answer in (other, v2, owner, consumer)] == [403, 403, 202, 403]


# --- memory and disk ----------------------------------------------------------------------------------------


def exactly_the_file(path: Path) -> OnnxSession:
    """A session that counts as the size of its file: what loading takes in memory differs from run to run."""
    session = OnnxSession(path, intra_op_threads=1)
    session.memory_bytes = path.stat().st_size
    return session


async def test_least_recently_used_model_makes_room_and_comes_back_when_asked(
    serve: Any, deploy: Any, onnx_models: Any, heard: Any, eventually: Any
) -> None:
    models = [onnx_models.slow(layers=n, width=256) for n in (1, 2, 3)]
    row = {"name": "x", "shape": [1, 256], "datatype": "FP32", "data": [1] * 256}
    async with serve(loader=exactly_the_file, memory_bytes_max=int(2.5 * len(models[2]))) as running:
        await deploy(running, "acme/one", models[0], pinned=True)
        await deploy(running, "acme/two", models[1])
        await deploy(running, "acme/three", models[2])
        assert [model.name for model in running.parts.models.all()] == ["acme/one", "acme/three"]

        first = await running.http.post("/oip/v2/models/acme/two/infer", json={"inputs": [row]})
        await eventually(lambda: running.parts.models.peek("acme/two") is not None)

        assert first.status_code == 503
        assert "Retry-After" in first.headers
        assert "make room" in first.json()["error"]
        assert [model.name for model in running.parts.models.all()] == ["acme/one", "acme/two"]
    assert [event.event.reason for event in heard(ModelUnloaded)] == ["memory", "memory"]


async def test_model_that_never_fits_is_refused_with_the_bound(serve: Any, registry: Any, onnx_models: Any) -> None:
    registry.commit("acme/big", {"model.onnx": onnx_models.slow(layers=1, width=1024)})
    async with serve(memory_bytes_max=1024 * 1024) as running:
        await running.http.post("/api/v1/deployments", json={"model": "acme/big"})
        answer = await running.http.get("/api/v1/deployments/acme/big", headers={"Prefer": "wait=10"})

    assert answer.json()["status"] == "failed"
    assert "INFERENCE_MEMORY_BYTES_MAX" in answer.json()["error"]["message"]


def artifact(data: bytes) -> Artifact:
    return Artifact(path="model.onnx", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


async def test_cache_stays_within_its_bytes(tmp_path: Path, registry: Any) -> None:
    cache = FolderCache(tmp_path / "cache", registry, bytes_max=250)
    files = [bytes([n]) * 100 for n in range(4)]
    for data in files:
        revision = registry.commit("a/b", {"model.onnx": data})
        await cache.fetch("a/b", revision, artifact(data))

    kept = {path.read_bytes()[0] for path in (tmp_path / "cache").rglob("model")}
    assert kept == {2, 3}
    with pytest.raises(TooLarge):
        await cache.fetch("a/b", revision, artifact(bytes(300)))


async def test_failed_download_leaves_nothing_behind(tmp_path: Path, registry: Any) -> None:
    registry.damaged = True
    revision = registry.commit("a/b", {"model.onnx": b"data"})
    cache = FolderCache(tmp_path / "cache", registry, bytes_max=1000)

    with pytest.raises(Unavailable):
        await cache.fetch("a/b", revision, artifact(b"data"))

    assert list((tmp_path / "cache").iterdir()) == []


async def test_remains_of_a_killed_download_are_cleared(tmp_path: Path, registry: Any) -> None:
    remains = tmp_path / "cache" / ("f" * 64)
    remains.mkdir(parents=True)
    (remains / ".model.x1").write_bytes(b"half")
    revision = registry.commit("a/b", {"model.onnx": b"data"})

    path = await FolderCache(tmp_path / "cache", registry, bytes_max=1000).fetch("a/b", revision, artifact(b"data"))

    assert path.read_bytes() == b"data"
    assert not remains.exists()


async def test_two_workers_serve_one_deployment_and_both_are_shown(
    serve: Any, deploy: Any, onnx_models: Any, eventually: Any
) -> None:
    async with serve() as first, serve(worker="worker-2") as second:
        await deploy(first, "acme/affine", onnx_models.affine())

        await eventually(lambda: second.parts.models.peek("acme/affine") is not None)

        async def both() -> bool:
            workers = (await status(first, "acme/affine"))["workers"]
            return [w["worker"] for w in workers if w["state"] == "ready"] == ["worker-1", "worker-2"]

        await eventually(both)
        assert await predict(second, "acme/affine") == 3.0


async def test_memory_is_given_back_when_a_model_goes(
    serve: Any, deploy: Any, onnx_models: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        session = running.parts.models.get("acme/affine").session

        await running.http.delete("/api/v1/deployments/acme/affine")

        await eventually(lambda: session._session is None)
        assert running.parts.models.memory_bytes() == 0
        assert np.isfinite(running.parts.scheduler.work_seconds())
