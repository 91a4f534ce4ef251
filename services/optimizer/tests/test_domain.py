"""The life of a job, what a commit asks for, and where the recommended tag belongs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from modelworks.events import FileChange, JobAccepted, JobCancelled, JobFailed, Lineage, RevisionCommitted, VariantBuilt
from modelworks.kit.errors import Conflict, InvalidInput
from modelworks.optimizer import domain
from modelworks.optimizer.domain import CommitPlan, Job, Outcome
from modelworks.optimizer.passes import ONNX
from modelworks.optimizer.ports import SourceFile, SourceRevision
from modelworks.optimizer.recipe import parse_recipe
from modelworks.optimizer.variant import Pointed, beside, card, find_targets, is_made, plan_commit, recommended

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE, VARIANT, OTHER = "1" * 40, "2" * 40, "3" * 40


def job() -> Job:
    accepted, _ = domain.accept(
        id="opt-1",
        repository="a/b",
        revision=SOURCE,
        ref="main",
        recipe=parse_recipe("int8").state(),
        actor="alice",
        now=NOW,
    )
    return accepted


def of(*paths: str, revision: str = SOURCE, lineage: Any = None) -> SourceRevision:
    return SourceRevision(
        revision, "2026-01-01T00:00:05Z", [SourceFile(path, 1, f"sha of {path}") for path in paths], lineage
    )


def outcome(verdict: str = "promote") -> Outcome:
    return Outcome(verdict=verdict, size_ratio=3.8, latency_ratio=0.5, agreement=1.0, report={})


def planned(one: Job) -> CommitPlan:
    return plan_commit(one, of("model.onnx"), None, made={"model.onnx": "new"}, dropped=(), message="m")


class TestLife:
    def test_acceptance_is_announced_with_the_recipes_name(self) -> None:
        _, events = domain.accept(
            id="opt-1",
            repository="a/b",
            revision=SOURCE,
            ref="main",
            recipe={"name": "int8", "pass": "int8"},
            actor="x",
            now=NOW,
        )

        assert events == [JobAccepted(job="opt-1", repository="a/b", revision=SOURCE, recipe="int8")]

    def test_same_wish_has_the_same_id_and_another_recipe_another(self) -> None:
        one, same = parse_recipe("int8"), parse_recipe({"pass": "int8", "name": "int8"})
        other = parse_recipe({"name": "int8", "pass": "int8", "rules": {"min_agreement": 0.5}})

        ids = [domain.job_id("a/b", SOURCE, recipe.digest) for recipe in (one, same, other)]

        assert ids[0] == ids[1] != ids[2]

    def test_each_start_has_a_higher_fence_and_only_crashes_count(self) -> None:
        first = domain.start(job(), crashed=False, now=NOW)
        second = domain.start(first, crashed=True, now=NOW)
        third = domain.start(domain.release(second, now=NOW), crashed=False, now=NOW)

        assert [one.fence for one in (first, second, third)] == [1, 2, 3]
        assert [one.crashes for one in (first, second, third)] == [0, 1, 1]

    def test_progress_never_goes_back(self) -> None:
        running = domain.start(job(), crashed=False, now=NOW)

        far = domain.advance(running, stage="evaluate", share=0.5, now=NOW)
        back = domain.advance(far, stage="download", share=0.1, now=NOW)

        assert 0.5 < far.progress == back.progress < 0.9

    def test_success_is_announced_with_figures_and_verdict(self) -> None:
        ready = domain.plan(job(), commit=planned(job()), outcome=outcome(), now=NOW)

        done, events = domain.succeed(ready, revision=VARIANT, now=NOW)

        assert (done.status, done.progress) == ("succeeded", 1.0)
        assert done.variant == domain.Variant(branch="optimized/int8", revision=VARIANT)
        assert events == [
            VariantBuilt(
                job="opt-1", repository="a/b", source_revision=SOURCE, revision=VARIANT, branch="optimized/int8",
                recipe="int8", verdict="promote", size_ratio=3.8, latency_ratio=0.5, agreement=1.0,
            )
        ]  # fmt: skip

    def test_failure_keeps_its_reason_within_what_an_event_may_hold(self) -> None:
        failed, [event] = domain.fail(job(), code="not-onnx", message="x" * 3000, now=NOW)

        assert failed.status == "failed"
        assert isinstance(event, JobFailed)
        assert len(event.error.message) == 2000

    def test_cancelling_twice_announces_once(self) -> None:
        cancelled, first = domain.cancel(job(), now=NOW)
        same, second = domain.cancel(cancelled, now=NOW)

        assert first == [JobCancelled(job="opt-1", repository="a/b", revision=SOURCE)]
        assert second == []
        assert same is cancelled

    def test_ended_job_cannot_be_cancelled(self) -> None:
        failed, _ = domain.fail(job(), code="x", message="y", now=NOW)

        with pytest.raises(Conflict, match="has failed already"):
            domain.cancel(failed, now=NOW)

    def test_another_run_starts_clean_under_its_own_key(self) -> None:
        failed, _ = domain.fail(domain.start(job(), crashed=True, now=NOW), code="x", message="y", now=NOW)

        fresh, events = domain.again(failed, actor="bob", now=NOW)

        assert (fresh.status, fresh.crashes, fresh.error, fresh.actor) == ("queued", 0, None, "bob")
        assert fresh.idempotency_key != failed.idempotency_key
        assert isinstance(events[0], JobAccepted)
        with pytest.raises(Conflict, match="is queued"):
            domain.again(fresh, actor="bob", now=NOW)

    def test_job_survives_the_document_store(self) -> None:
        ready = domain.plan(job(), commit=planned(job()), outcome=outcome("keep"), now=NOW)

        assert Job.model_validate(ready.model_dump(mode="json")) == ready


class TestWanted:
    def event(self, **changed: Any) -> RevisionCommitted:
        given: dict[str, Any] = {
            "repository": "a/b", "revision": SOURCE, "branch": "main", "parents": [], "message": "", "changes_total": 1,
            "changes": [FileChange(path="sub/net.onnx", change="modified", sha256="a" * 64, size_bytes=1)],
        }  # fmt: skip
        return RevisionCommitted(**given | changed)

    def test_changed_model_on_a_watched_branch_is(self) -> None:
        assert domain.is_wanted(self.event(), branches=("main",))
        assert domain.is_wanted(self.event(branch="release/3"), branches=("main", "release/*"))

    def test_deleted_model_is_not(self) -> None:
        assert not domain.is_wanted(
            self.event(changes=[FileChange(path="model.onnx", change="deleted")]), branches=("main",)
        )

    def test_change_beyond_those_listed_may_be_a_model(self) -> None:
        listed = [FileChange(path=f"{n:03}.txt", change="added", sha256="a" * 64, size_bytes=1) for n in range(256)]

        assert domain.is_wanted(self.event(changes=listed, changes_total=300), branches=("main",))

    @pytest.mark.parametrize("kind", ["merged", "fine-tuned", "imported"])
    def test_other_derived_revisions_are(self, kind: Any) -> None:
        lineage = Lineage(kind=kind, source_repository="a/b", source_revision=OTHER)

        assert domain.is_wanted(self.event(lineage=lineage), branches=("main",))

    def test_own_output_is_not(self) -> None:
        lineage = Lineage(kind="optimized", source_repository="a/b", source_revision=OTHER)

        assert not domain.is_wanted(self.event(lineage=lineage), branches=("*",))


class TestTargets:
    def test_model_onnx_is_taken_where_there_is_one(self) -> None:
        assert find_targets(parse_recipe("int8"), of("a.onnx", "model.onnx"), ONNX) == ("model.onnx",)

    def test_else_every_onnx_file(self) -> None:
        assert find_targets(parse_recipe("int8"), of("x/a.onnx", "b.onnx", "c.txt"), ONNX) == ("x/a.onnx", "b.onnx")

    def test_named_target_must_exist(self) -> None:
        recipe = parse_recipe({"name": "mine", "pass": "int8", "targets": ["net.onnx"]})

        with pytest.raises(InvalidInput, match=r"target 'net\.onnx' is not in revision"):
            find_targets(recipe, of("model.onnx"), ONNX)

    @pytest.mark.parametrize("paths", [("weights.bin",), tuple(f"{n}.onnx" for n in range(9))])
    def test_nothing_and_too_much_are_refused(self, paths: tuple[str, ...]) -> None:
        with pytest.raises(InvalidInput, match=r"holds no \.onnx|holds 9 \.onnx"):
            find_targets(parse_recipe("int8"), of(*paths), ONNX)

    def test_files_with_large_tensors_come_along(self) -> None:
        source = of("m/model.onnx", "m/model.onnx.data", "m/weights.bin", "m/notes.txt", "other.data")

        assert [file.path for file in beside(["m/model.onnx"], source, ONNX)] == ["m/model.onnx.data", "m/weights.bin"]


class TestPlan:
    def test_new_branch_starts_at_the_source_and_holds_only_what_is_new(self) -> None:
        plan = plan_commit(
            job(), of("model.onnx", "README.md", "optimization/old.json"), None, message="m", dropped=(),
            made={"model.onnx": "new", "optimization/report.json": "r"},
        )  # fmt: skip

        assert (plan.start, plan.expected) == (SOURCE, None)
        assert plan.puts == {"model.onnx": "new", "optimization/report.json": "r"}
        assert plan.deletes == ("optimization/old.json",)
        assert plan.lineage["kind"] == "optimized"

    def test_existing_branch_becomes_the_new_source_with_the_variant(self) -> None:
        head = of("model.onnx", "gone.txt", "README.md", revision=OTHER)

        plan = plan_commit(
            job(), of("model.onnx", "README.md", "fresh.txt"), head, made={"model.onnx": "new"}, dropped=(), message="m"
        )

        assert (plan.start, plan.expected) == (None, OTHER)
        assert plan.puts == {"model.onnx": "new", "fresh.txt": "sha of fresh.txt"}
        assert plan.deletes == ("gone.txt",)

    def test_originals_large_tensors_do_not_come_along(self) -> None:
        source = of("model.onnx", "model.onnx.data")

        plan = plan_commit(job(), source, None, made={"model.onnx": "new"}, dropped={"model.onnx.data"}, message="m")

        assert plan.deletes == ("model.onnx.data",)

    def test_planned_commit_is_recognised_by_job_and_content(self) -> None:
        plan = planned(job())
        lineage = plan.lineage
        same = SourceRevision(VARIANT, "", [SourceFile("model.onnx", 1, "new")], lineage)
        earlier_run = SourceRevision(VARIANT, "", [SourceFile("model.onnx", 1, "older")], lineage)

        assert is_made(plan, same)
        assert not is_made(plan, earlier_run)
        assert not is_made(plan, of("model.onnx"))
        assert not is_made(plan, None)


class TestRecommended:
    source = of("model.onnx")

    def where(self, verdict: Any, current: Pointed | None) -> str | None:
        return recommended(job(), self.source, VARIANT, verdict=verdict, current=current)

    def test_first_verdict_sets_the_tag_either_way(self) -> None:
        assert self.where("promote", None) == VARIANT
        assert self.where("keep", None) == SOURCE

    def test_older_source_is_displaced(self) -> None:
        old = Pointed(OTHER, OTHER, "2026-01-01T00:00:01Z", None)

        assert self.where("promote", old) == VARIANT
        assert self.where("keep", old) == SOURCE

    def test_newer_source_is_not(self) -> None:
        newer = Pointed(OTHER, OTHER, "2026-01-01T00:00:09Z", None)

        assert self.where("promote", newer) is None
        assert self.where("keep", newer) is None

    def test_variant_that_another_recipe_was_promoted_with_is_kept(self) -> None:
        other = Pointed(OTHER, SOURCE, self.source.created_at, "prune")

        assert self.where("keep", other) is None
        assert self.where("promote", other) == VARIANT

    def test_variant_of_an_earlier_run_of_the_same_recipe_is_taken_back(self) -> None:
        earlier = Pointed(OTHER, SOURCE, self.source.created_at, "int8")

        assert self.where("keep", earlier) == SOURCE

    def test_tag_in_its_place_is_left_alone(self) -> None:
        assert self.where("promote", Pointed(VARIANT, SOURCE, self.source.created_at, "int8")) is None


def test_card_keeps_the_originals_text_and_says_what_changed() -> None:
    text = card(
        "---\nlicense: mit\n---\n# Magic\n", job(), targets=["model.onnx"], summary="3.8x smaller", verdict="keep"
    )

    assert text.startswith("---\nlicense: mit\n---\n# Magic\n\n## Variant `int8`\n")
    assert "3.8x smaller. Verdict: **keep**" in text


def test_repository_without_a_card_gets_one() -> None:
    assert card(None, job(), targets=["model.onnx"], summary="s", verdict="keep").startswith("# b\n")
