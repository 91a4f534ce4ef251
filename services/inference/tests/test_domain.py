"""Deployments and jobs: what each transition changes, and what it tells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from modelworks.events import (
    DeploymentRemoved,
    DeploymentRequested,
    Failure,
    ModelLoaded,
    ModelLoadFailed,
    ModelUnloaded,
    PredictionQueuedBulk,
)
from modelworks.inference.card import read_wishes
from modelworks.inference.domain import (
    Artifact,
    Batching,
    Deployment,
    Job,
    Loaded,
    Payload,
    Source,
    cancel,
    cannot_follow,
    choose_artifact,
    choose_batching,
    enqueue,
    expire,
    fail,
    follow,
    job_id,
    remove_deployment,
    report_loaded,
    report_unloaded,
    request_deployment,
    start,
    succeed,
)
from modelworks.inference.protocols.v2_path import Target, parse_target
from modelworks.kit.errors import Conflict, InvalidInput, NotFound

AT = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = "1" * 40, "2" * 40
ARTIFACT = Artifact(path="model.onnx", sha256="a" * 64, size_bytes=10)
OOPS = Failure(code="model-refused", message="not a model")


def source(revision: str = OLD, ref: str = "main") -> Source:
    return Source(ref, revision, ARTIFACT, Batching())


def deployed(**workers: Loaded) -> Deployment:
    change = request_deployment(None, model="a/b", source=source(), pinned=False, by="ann", at=AT)
    return change.state.model_copy(update={"workers": workers})


def loaded(state: Any = "ready", revision: str = OLD, serving: str | None = OLD, **more: Any) -> Loaded:
    return Loaded(state=state, revision=revision, serving=serving, sha256="a" * 64, at=AT, **more)


# --- deployments --------------------------------------------------------------------------------------------


def test_first_request_deploys() -> None:
    change = request_deployment(None, model="a/b", source=source(), pinned=False, by="ann", at=AT)

    assert change.events == (DeploymentRequested(model="a/b", ref="main", revision=OLD),)
    assert change.state.status() == "loading"


def test_asking_for_what_is_served_changes_nothing() -> None:
    before = deployed(w=loaded())

    change = request_deployment(before, model="a/b", source=source(), pinned=False, by="bob", at=AT)

    assert change.state == before
    assert change.events == ()


def test_asking_again_after_a_failure_tries_again() -> None:
    before = deployed(w=loaded("failed", serving=None, error=OOPS))

    change = request_deployment(before, model="a/b", source=source(), pinned=False, by="ann", at=AT)

    assert change.state.generation == before.generation + 1
    assert len(change.events) == 1


def test_removed_deployment_can_come_back() -> None:
    removed = remove_deployment(deployed(w=loaded()), at=AT)

    change = request_deployment(removed.state, model="a/b", source=source(), pinned=False, by="ann", at=AT)

    assert removed.events == (DeploymentRemoved(model="a/b"),)
    assert not change.state.removed
    assert change.state.workers == {}


def test_removing_twice_tells_once() -> None:
    removed = remove_deployment(deployed(), at=AT).state

    assert remove_deployment(removed, at=AT).events == ()


def test_deployment_moves_with_its_ref_once() -> None:
    moved = follow(deployed(), source(NEW), at=AT)

    assert moved.state.revision == NEW
    assert moved.events == (DeploymentRequested(model="a/b", ref="main", revision=NEW),)
    assert follow(moved.state, source(NEW), at=AT).events == ()


def test_revision_that_cannot_be_served_leaves_the_old_one_and_says_so_once() -> None:
    stayed = cannot_follow(deployed(w=loaded()), NEW, OOPS, worker="w", at=AT)

    assert stayed.state.revision == OLD
    assert stayed.state.status() == "failed"
    assert stayed.events == (ModelLoadFailed(model="a/b", revision=NEW, worker="w", error=OOPS),)
    assert cannot_follow(stayed.state, NEW, OOPS, worker="w", at=AT).events == ()


def test_good_revision_clears_the_error() -> None:
    stayed = cannot_follow(deployed(w=loaded()), NEW, OOPS, worker="w", at=AT).state

    assert follow(stayed, source(OLD), at=AT).state.error is None


def test_load_is_told_with_what_it_replaced() -> None:
    before = follow(deployed(w=loaded("loading", NEW, OLD)), source(NEW), at=AT).state

    change = report_loaded(before, "w", loaded("ready", NEW, NEW, provider="CPU", load_ms=5))

    assert [type(event) for event in change.events] == [ModelLoaded, ModelUnloaded]
    assert change.events[1] == ModelUnloaded(model="a/b", revision=OLD, worker="w", reason="replaced")


def test_same_failure_is_told_once() -> None:
    failed = loaded("failed", NEW, OLD, error=OOPS)
    first = report_loaded(deployed(w=loaded()), "w", failed)

    assert [type(event) for event in first.events] == [ModelLoadFailed]
    assert report_loaded(first.state, "w", failed).events == ()


def test_workers_that_are_gone_are_forgotten() -> None:
    change = report_loaded(deployed(dead=loaded(), w=loaded("loading")), "w", loaded(), gone=frozenset({"dead"}))

    assert set(change.state.workers) == {"w"}


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([], "loading"),
        (["loading"], "loading"),
        (["failed", "loading"], "loading"),
        (["failed", "failed"], "failed"),
        (["failed", "ready"], "ready"),
        (["unloaded"], "ready"),
    ],
)
def test_status_is_that_of_the_best_worker(states: list[Any], status: str) -> None:
    workers = {f"w{n}": loaded(state) for n, state in enumerate(states)}

    assert deployed(**workers).status() == status


def test_worker_that_serves_the_old_revision_does_not_make_the_new_one_ready() -> None:
    moved = follow(deployed(w=loaded()), source(NEW), at=AT).state

    assert moved.status() == "loading"


def test_unloading_for_memory_is_remembered_and_told() -> None:
    change = report_unloaded(deployed(w=loaded()), "w", OLD, "memory", at=AT)

    assert change.state.workers["w"].state == "unloaded"
    assert change.events == (ModelUnloaded(model="a/b", revision=OLD, worker="w", reason="memory"),)


# --- jobs ---------------------------------------------------------------------------------------------------


def job(**more: Any) -> Job:
    payload = Payload(key="k", sha256="b" * 64, size_bytes=3)
    return Job(id="j", model="a/b", lane="bulk", owner="ann", inputs=payload, created_at=AT, **more)


def test_job_is_told_in_its_lane() -> None:
    (event,) = enqueue(job(deadline=AT + timedelta(hours=1))).events

    assert isinstance(event, PredictionQueuedBulk)
    assert event.principal == "ann"
    assert event.inputs.sha256 == "b" * 64


def test_each_start_counts() -> None:
    twice = start(start(job(), worker="w", at=AT).state, worker="v", at=AT + timedelta(1)).state

    assert (twice.attempts, twice.worker, twice.started_at) == (2, "v", AT)


def test_result_event_names_where_the_output_is() -> None:
    output = Payload(key="o", sha256="c" * 64, size_bytes=7)
    running = start(job(request="ce-1"), worker="w", at=AT).state

    (event,) = succeed(running, output, revision=NEW, batch_rows=4, queue_ms=1, compute_ms=2, at=AT).events

    assert event.model_dump(exclude_none=True) == {
        "job": "j", "request": "ce-1", "model": "a/b", "revision": NEW, "mouth": "queued", "lane": "bulk",
        "principal": "ann", "status": "succeeded", "batch_rows": 4, "input_bytes": 3, "output_bytes": 7,
        "queue_ms": 1.0, "compute_ms": 2.0,
        "result": {"uri": "/api/v1/jobs/j/result", "sha256": "c" * 64, "size_bytes": 7},
    }  # fmt: skip


@pytest.mark.parametrize(
    "end", [lambda j: fail(j, OOPS, at=AT), lambda j: expire(j, at=AT), lambda j: cancel(j, at=AT)]
)
def test_ended_job_does_not_end_again(end: Any) -> None:
    ended = end(job()).state

    assert ended.final
    for again in (
        lambda: fail(ended, OOPS, at=AT),
        lambda: expire(ended, at=AT),
        lambda: start(ended, worker="w", at=AT),
    ):
        with pytest.raises(Conflict):
            again()


def test_cancelling_twice_tells_once() -> None:
    cancelled = cancel(job(), at=AT)

    assert len(cancelled.events) == 1
    assert cancel(cancelled.state, at=AT).events == ()


def test_named_jobs_differ_by_every_part() -> None:
    assert job_id("event", "/s", "1") == job_id("event", "/s", "1")
    assert len({job_id("event", "/s", "1"), job_id("event", "/s1", ""), job_id("key", "/s", "1")}) == 3


# --- the card -----------------------------------------------------------------------------------------------


def of_card(text: bytes) -> Any:
    return read_wishes({"README.md": text})


FILES = {"a.onnx": ("1" * 64, 1), "sub/b.onnx": ("2" * 64, 2), "README.md": ("3" * 64, 3)}


def test_card_names_the_model() -> None:
    card = of_card(b"---\ntags: [x]\nmodelworks:\n  model: sub/b.onnx  # the small one\n  max_batch: 4\n---\n# Hello")

    assert choose_artifact(FILES, card).path == "sub/b.onnx"
    assert choose_batching(card) == Batching(max_batch=4)


def test_card_in_flow_style_is_read_too() -> None:
    assert of_card(b"---\nmodelworks: {model: a.onnx, max_delay_ms: 1.5}\n---\n") == {
        "model": "a.onnx", "max_delay_ms": "1.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", [b"", b"# Hello", b"---\nmodelworks: {model: x}\n", b"---\ntags: [modelworks]\n---\n", b"\xff"]
)
def test_card_without_our_mapping_says_nothing(text: bytes) -> None:
    assert of_card(text) == {}


@pytest.mark.parametrize(
    "text",
    [
        b"---\nmodelworks: [a]\n---\n",
        b"---\nmodelworks: {model: x\n---\n",
        b"---\nmodelworks: &a {model: *a}\n---\n",
        b"---\nmodelworks:\n  model: " + b"x" * 20_000 + b"\n---\n",
        b"---\nmodelworks: " + b"[" * 16_000 + b"\n---\n",
    ],
)
def test_broken_mapping_in_the_card_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        of_card(text)


def test_manifest_goes_before_the_card() -> None:
    said = {
        "modelworks.yaml": b"model: b.onnx\noptimization: {rules: {x: 1}}\n",
        "README.md": b"---\nmodelworks: {model: a}\n---\n",
    }

    assert read_wishes(said) == {"model": "b.onnx"}
    with pytest.raises(InvalidInput):
        read_wishes({"modelworks.yaml": b"- model"})


def test_only_onnx_file_is_the_model() -> None:
    assert choose_artifact({"m.ONNX": ("1" * 64, 1), "x.txt": ("2" * 64, 2)}, {}).path == "m.ONNX"


@pytest.mark.parametrize(
    ("files", "card"), [(FILES, {}), ({}, {}), (FILES, {"model": "no.onnx"}), (FILES, {"model": "../a.onnx"})]
)
def test_revision_without_a_clear_model_is_refused(files: Any, card: Any) -> None:
    with pytest.raises(InvalidInput):
        choose_artifact(files, card)


@pytest.mark.parametrize("card", [{"max_batch": "0"}, {"max_batch": "many"}, {"max_delay_ms": "-1"}])
def test_batching_out_of_bounds_is_refused(card: Any) -> None:
    with pytest.raises(InvalidInput):
        choose_batching(card)


# --- paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a/b", Target("a/b")),
        ("a/b/infer", Target("a/b", "", "infer")),
        ("a/ready", Target("a/ready")),
        ("a/ready/ready", Target("a/ready", "", "ready")),
        ("a/versions/versions/infer/infer", Target("a/versions", "infer", "infer")),
        ("a/b/versions/main/config", Target("a/b", "main", "config")),
        ("a/b/versions/feature/x/infer", Target("a/b", "feature/x", "infer")),
        ("a/b@main/infer", Target("a/b", "main", "infer")),
        ("a/b@feature/x/stats", Target("a/b", "feature/x", "stats")),
        ("a/b/trace/setting", Target("a/b", "", "trace/setting")),
    ],
)
def test_path_is_read_from_the_right(path: str, target: Target) -> None:
    assert parse_target(path) == target


@pytest.mark.parametrize(
    "path", ["", "a", "infer", "a/b/c", "a/b/versions//infer", "a/b@", "/b/infer", "a/../b", "a b/c"]
)
def test_path_that_names_no_model_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        parse_target(path)
