"""Names, objects and moves: no store, no loop."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelworks.events import Lineage, RefMoved, RepositoryCreated, RevisionCommitted
from modelworks.kit.errors import Conflict, InvalidInput, NotFound, TooLarge, VersionConflict
from modelworks.registry.domain import (
    OMITTED,
    Creation,
    Delete,
    Entry,
    Facts,
    Move,
    Put,
    Ref,
    Repository,
    Request,
    Served,
    check_operations,
    operate,
)
from modelworks.registry.names import check_path, check_ref, check_repository, check_twins
from modelworks.registry.objects import Changes, Commit, File, Tree, canonical, compare, object_id, plant

unhurried = settings(deadline=None)
"""Time says more of the machine than of the code."""

A, B, C = ("a" * 40, "b" * 40, "c" * 40)
X, Y = ("1" * 64, "2" * 64)
TIME = "2026-01-31T12:00:00.000000Z"


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "acme/magika", "Acme-1/bert_base.v2", "a" * 96 + "/" + "b" * 96])
def test_a_repository_may_be_called(name: str) -> None:
    assert check_repository(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "acme", "acme/", "/x", "a/b/c", "acme/.x", "-a/b", "a b/c", "a/b\n", "acme/x..y", "acme/x.git", "acme/X.GIT",
     "acme/x.", "acme./x", "a" * 97 + "/b", "acmé/x", "../../etc/passwd", "a/" + "b" * 10_000],
)  # fmt: skip
def test_a_repository_may_not_be_called(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_repository(name)


@pytest.mark.parametrize("name", ["main", "dev/x", "v1.0", "int8+pruned", "a" * 200, "release=2"])
def test_a_ref_may_be_called(name: str) -> None:
    assert check_ref(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a//b", "/a", "a/", "a..b", ".a", "a/.b", "a b", "a~1", "a^", "a:b", "a?b", "a*", "a[", "a\\b", "a@{1}", "-a",
     "a.lock", "a/b.lock/c", "a.", "\x00", "a\n", "é", A, "refs/heads/main", "refs", "a" * 201],
)  # fmt: skip
def test_a_ref_may_not_be_called(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_ref(name)


@pytest.mark.parametrize(
    "path",
    ["README.md", "a/b/c.onnx", "modèle/poids.bin", "模型.bin", ".gitattributes", ".hidden/x", "a..b", "x" * 255],
)
def test_a_file_may_lie_at(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "a\x00b", "a\nb", "a\\b",
     "C:\\x", "c:x", "a|b", 'a"b', "a?b", "a*b", "<a>", ".git/config", "a/.GIT", "CON", "aux.txt", "x/Com1.bin", "lpt9",
     "a ", " a", "a.", "a/b. ", "x" * 256, "é" * 200, "a/" * 32 + "b", "x/" * 499 + "xxx", "a" * 1001, "a" * 10_000,
     unicodedata.normalize("NFD", "modèle"), "\ud800", "a\x7fb"],
)  # fmt: skip
def test_no_file_may_lie_at(path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_path(path)

    assert "is refused" in refused.value.message
    # What is shown to the caller must survive being sent.
    refused.value.message.encode()


@pytest.mark.parametrize(
    "paths",
    [["a", "A"], ["x/a", "X/b"], ["readme.md", "README.md"], ["a", "a/b"], ["x/a/b", "x/a"], ["straße", "STRASSE"],
     ["A", "a/b"]],
)  # fmt: skip
def test_paths_that_one_file_system_cannot_hold_apart_are_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_twins(paths)


def test_paths_that_only_share_beginnings_are_fine() -> None:
    check_twins(["a/b", "a/c", "ab", "a.b", "b/a/b"])


# --- objects ----------------------------------------------------------------------------------------------

segments = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=6)
listings = st.dictionaries(
    st.lists(segments, min_size=1, max_size=3).map("/".join),
    st.builds(File, st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest()), st.integers(0, 2**53)),
    max_size=12,
).filter(lambda files: not any(other.startswith(path + "/") for path in files for other in files))


@unhurried
@given(listings, st.randoms())
def test_tree_ids_depend_on_the_files_and_on_nothing_else(files: dict[str, File], random: Any) -> None:
    shuffled = list(files.items())
    random.shuffle(shuffled)

    assert plant(dict(shuffled)).root == plant(files).root


@unhurried
@given(listings, listings)
def test_equal_tree_ids_mean_equal_files(one: dict[str, File], other: dict[str, File]) -> None:
    assert (plant(one).root == plant(other).root) == (one == other)


@unhurried
@given(listings)
def test_trees_give_back_every_file(files: dict[str, File]) -> None:
    planted = plant(files)

    def walk(id: str, prefix: str) -> dict[str, File]:
        tree = Tree.decode(planted.objects[id])
        found = {prefix + name: file for name, file in tree.files.items()}
        for name, child in tree.trees.items():
            found |= walk(child, f"{prefix}{name}/")
        return found

    assert walk(planted.root, "") == files
    assert all(object_id("tree", body) == id for id, body in planted.objects.items())
    assert all(Tree.decode(body).encode() == body for body in planted.objects.values())


texts = st.text(st.characters(codec="utf-8"), max_size=50)
lineages = st.none() | st.builds(
    Lineage, kind=st.sampled_from(["optimized", "imported"]), source_repository=st.just("a/b"), source_revision=st.just(A),
    recipe=st.none() | st.just("int8"), job=st.none() | st.just("job-1"),
)  # fmt: skip
commits = st.builds(
    Commit, tree=st.just(A), parents=st.lists(st.sampled_from([A, B, C]), max_size=3).map(tuple), author=texts,
    created_at=st.just(TIME), message=texts, generation=st.integers(1, 2**53), lineage=lineages,
)  # fmt: skip


@unhurried
@given(commits)
def test_a_commit_is_the_same_after_its_bytes(commit: Commit) -> None:
    body = commit.encode()

    assert Commit.decode(body) == commit
    assert Commit.decode(body).encode() == body
    assert len(commit.id) == 40
    assert int(commit.id, 16) >= 0


@unhurried
@given(commits, commits)
def test_equal_commit_ids_mean_equal_commits(one: Commit, other: Commit) -> None:
    assert (one.id == other.id) == (one == other)


@unhurried
@given(st.recursive(texts | st.integers(-(2**53), 2**53) | st.booleans() | st.none(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcxyz"), inner), max_leaves=10))  # fmt: skip
def test_canonical_json_is_json_and_a_fixed_point(value: Any) -> None:
    body = canonical({"value": value})

    assert json.loads(body) == {"value": value}
    assert canonical(json.loads(body)) == body
    assert b"\n" not in body


def test_ids_are_written_down() -> None:
    """INVARIANT: ids never change: every commit ever made is found by them.

    What would break it: another header, another order of keys, other separators, escaping of non-ASCII.
    """
    tree = plant({"modèle/w.bin": File(X, 3), "README.md": File(Y, 1)})
    commit = Commit(tree=tree.root, parents=(A,), author="ada", created_at=TIME, message="größer", generation=2)

    body = (
        '{"author":"ada","created_at":"2026-01-31T12:00:00.000000Z","generation":2,"message":"größer",'
        f'"parents":["{A}"],"tree":"{tree.root}"}}'
    ).encode()
    assert commit.encode() == body
    header = b"modelworks commit " + str(len(body)).encode() + b"\0"
    assert commit.id == hashlib.sha256(header + body).hexdigest()[:40]
    assert tree.root == "fb5de58d157a75b44cff52300e598c921c271ae4"
    assert commit.id == "9b05d9bc2e318ded646898d141a9f8c0fe89fb35"


def test_a_tree_and_a_commit_of_the_same_bytes_have_different_ids() -> None:
    assert object_id("tree", b"{}") != object_id("commit", b"{}")


def test_changes_name_what_was_added_modified_and_deleted() -> None:
    old = {"a": File(X, 1), "b": File(X, 1), "c": File(X, 1)}
    new = {"b": File(Y, 2), "c": File(X, 1), "d": File(Y, 2)}

    changes = compare(old, new)

    assert [(c.path, c.change, c.size_bytes) for c in changes.first] == [
        ("a", "deleted", None), ("b", "modified", 2), ("d", "added", 2),
    ]  # fmt: skip
    assert changes.total == 3


def test_an_event_carries_the_first_256_changes_and_counts_all() -> None:
    changes = compare({}, {f"f{n:04}": File(X, 1) for n in range(300)})

    assert (len(changes.first), changes.total) == (256, 300)
    assert changes.first[-1].path == "f0255"


# --- operations -------------------------------------------------------------------------------------------


def test_operations_lead_from_one_listing_to_the_next() -> None:
    base = {"a": File(X, 1), "b": File(X, 1)}

    files = operate(base, [Put("c/d", Y), Delete("a"), Put("b", Y)], sizes={Y: 7}, files_max=10)

    assert files == {"b": File(Y, 7), "c/d": File(Y, 7)}
    assert base == {"a": File(X, 1), "b": File(X, 1)}


def test_a_file_may_become_a_directory_in_one_commit() -> None:
    assert operate({"a": File(X, 1)}, [Put("a/b", Y), Delete("a")], sizes={Y: 1}, files_max=10) == {"a/b": File(Y, 1)}


@pytest.mark.parametrize(
    ("operation", "said"),
    [(Delete("zz"), "no such file"), (Delete("d"), "directory"), (Put("A", Y), "differ only in case"),
     (Put("a/b", Y), "is a file and"), (Put("d", Y), "is a file and")],
)  # fmt: skip
def test_operations_that_lead_nowhere_are_refused(operation: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        operate({"a": File(X, 1), "d/e": File(X, 1)}, [operation], sizes={Y: 1}, files_max=10)


def test_more_files_than_allowed_are_refused() -> None:
    with pytest.raises(TooLarge, match="at most 1"):
        operate({"a": File(X, 1)}, [Put("b", Y)], sizes={Y: 1}, files_max=1)


@pytest.mark.parametrize("operations", [[], [Put("a", X), Delete("a")], [Put("../a", X)], [Delete("/a")]])
def test_operations_that_no_tree_could_take_are_refused(operations: list[Any]) -> None:
    with pytest.raises(InvalidInput):
        check_operations(operations, operations_max=10)


def test_more_operations_than_allowed_are_refused() -> None:
    with pytest.raises(TooLarge, match="at most 1"):
        check_operations([Put("a", X), Put("b", X)], operations_max=1)


# --- a repository and its moves ---------------------------------------------------------------------------


def created(**more: Any) -> Repository:
    creation = Creation(
        repository="acme/m", kind="model", private=False, owner="ada", description="", space="shared/acme", **more
    )
    state, events = Repository.created(Entry(sequence=0, time=TIME, actor="ada", creation=creation))
    assert events == [RepositoryCreated(repository="acme/m", kind="model", private=False)]
    return state


def moved(state: Repository, move: Move, facts: Facts | None = None, **more: Any) -> tuple[Repository, Any]:
    entry = state.next_entry(move, time=TIME, actor="ada", refs_max=3)
    return state.applied(entry, facts or Facts(), served_max=more.get("served_max", 10))


def test_a_commit_announces_itself_and_its_branch() -> None:
    commit = Commit(tree=C, parents=(A,), author="ada", created_at=TIME, message="m", generation=2)
    changes = compare({}, {"a": File(X, 1)})

    state, events = moved(
        created(), Move(kind="branch", ref="main", old=A, new=B, committed=True), Facts(commit, changes)
    )

    assert state.sequence == 1
    assert state.head("branch", "main") == B
    assert events == [
        RevisionCommitted(
            repository="acme/m", revision=B, branch="main", parents=[A], message="m", changes=list(changes.first),
            changes_total=1,
        ),
        RefMoved(repository="acme/m", kind="branch", ref="main", old=A, new=B),
    ]  # fmt: skip


def test_deleting_a_ref_announces_that_it_is_gone() -> None:
    state, _ = moved(created(), Move(kind="tag", ref="v1", old=None, new=A))

    state, events = moved(state, Move(kind="tag", ref="v1", old=A, new=None))

    assert state.refs == ()
    assert events == [RefMoved(repository="acme/m", kind="tag", ref="v1", old=A, new=None)]


def test_entries_out_of_order_are_a_defect() -> None:
    state = created()
    entry = state.next_entry(Move(kind="tag", ref="v1", old=None, new=A), time=TIME, actor="ada", refs_max=3)
    state, _ = state.applied(entry, Facts(), served_max=1)

    with pytest.raises(AssertionError, match="in order"):
        state.applied(entry, Facts(), served_max=1)


def test_a_name_is_a_branch_before_it_is_a_tag() -> None:
    refs = (Ref(kind="branch", name="x", revision=A), Ref(kind="tag", name="x", revision=B))
    state = created().model_copy(update={"refs": refs})

    assert state.resolve("x") == A
    assert state.resolve("refs/tags/x") == B
    assert state.resolve("refs/heads/x") == A
    assert state.resolve(C) == C
    with pytest.raises(NotFound, match="its refs are: x"):
        state.resolve("y")
    with pytest.raises(NotFound):
        state.resolve("refs/heads/y")


@pytest.mark.parametrize("expected", [None, B])
def test_a_ref_that_is_elsewhere_is_a_conflict_that_names_both(expected: str | None) -> None:
    state = created().model_copy(update={"refs": (Ref(kind="branch", name="main", revision=A),)})

    with pytest.raises(VersionConflict) as conflict:
        state.compare("branch", "main", expected)

    assert conflict.value.data["actual"] == A
    assert conflict.value.data["expected"] == expected
    assert A in conflict.value.message


def test_refs_are_bounded() -> None:
    state = created()
    for n in range(3):
        state, _ = moved(state, Move(kind="tag", ref=f"v{n}", old=None, new=A))

    with pytest.raises(TooLarge, match="REGISTRY_REFS_MAX"):
        moved(state, Move(kind="tag", ref="v3", old=None, new=A))
    state, _ = moved(state, Move(kind="tag", ref="v2", old=A, new=B))
    assert state.head("tag", "v2") == B


def test_the_default_branch_stays() -> None:
    state, _ = moved(created(), Move(kind="branch", ref="main", old=None, new=A))

    with pytest.raises(Conflict, match="default branch"):
        moved(state, Move(kind="branch", ref="main", old=A, new=None))


def test_a_served_request_is_remembered_until_newer_ones_push_it_out() -> None:
    state = created()
    requests = [Request(branch="main", key=f"k{n}", digest=X) for n in range(3)]
    old: str | None = None
    for request, revision in zip(requests, (A, B, C), strict=True):
        move = Move(kind="branch", ref="main", old=old, new=revision, committed=True, request=request)
        state, _ = moved(state, move, served_max=2)
        old = revision

    assert state.served == (Served(request=requests[1], revision=B), Served(request=requests[2], revision=C))
    assert state.served_as(requests[2]) == C
    assert state.served_as(requests[0]) is None
    assert state.served_as(requests[1].model_copy(update={"branch": "dev"})) is None
    with pytest.raises(Conflict, match="another commit"):
        state.served_as(requests[1].model_copy(update={"digest": Y}))


@pytest.mark.parametrize(
    ("branch", "expected", "start", "answer"),
    [("main", OMITTED, None, (A, A)), ("main", A, B, (A, A)), ("dev", OMITTED, "main", (None, A)),
     ("dev", None, C, (None, C)), ("dev", None, None, (None, None))],
)  # fmt: skip
def test_a_commit_builds_on(branch: str, expected: Any, start: str | None, answer: tuple[Any, Any]) -> None:
    state = created().model_copy(update={"refs": (Ref(kind="branch", name="main", revision=A),)})

    assert state.parent_of(branch, expected=expected, start=start) == answer


def test_a_misspelled_branch_is_not_begun_by_accident() -> None:
    state = created().model_copy(update={"refs": (Ref(kind="branch", name="main", revision=A),)})

    with pytest.raises(InvalidInput, match="no branch 'mian'"):
        state.parent_of("mian", expected=OMITTED, start=None)
    assert created().parent_of("trunk", expected=OMITTED, start=None) == (None, None)


def test_facts_without_a_commit_change_no_card() -> None:
    assert Facts().changes == Changes()
