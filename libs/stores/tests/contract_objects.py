"""What every object store does. Each adapter's test module subclasses `ObjectsContract` and gives `open_objects`."""

from __future__ import annotations

import asyncio
import hashlib
import random
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import pytest
from modelworks.kit.errors import InvalidInput, NotFound, StoreUnavailable, TooLarge, VersionConflict
from modelworks.stores import Objects, Part, PresignedRequest

MIB = 1024 * 1024
HELLO = b"hello, world"
# `printf 'hello, world' | sha256sum`
HELLO_SHA256 = "09ca7e4eaa6e8ae9c7d261167129184883644d07dfba7cbfbc4c8a2e08360d5b"
OTHER_SHA256 = "0" * 64


class OpenObjects(Protocol):
    """Opens a store on the same data each time, as another process would; all are closed after the test."""

    def __call__(self) -> Objects: ...


class Send(Protocol):
    """Sends a presigned request, as somebody without credentials would; gives the status and the body."""

    async def __call__(
        self, request: PresignedRequest, *, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]: ...


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def collected(source: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in source])


async def keys(objects: Objects, prefix: str, *, after: str = "") -> list[str]:
    return [info.key async for info in objects.list(prefix, after=after)]


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


class ObjectsContract:
    @pytest.fixture
    def objects(self, open_objects: OpenObjects) -> Objects:
        return open_objects()

    # Whole objects

    async def test_what_was_put_is_read_back(self, objects: Objects) -> None:
        info = await objects.put("a/b.bin", HELLO, sha256=HELLO_SHA256, size_bytes=12)

        assert (info.key, info.size_bytes) == ("a/b.bin", 12)
        assert await objects.head("a/b.bin") == info
        assert await objects.read("a/b.bin") == HELLO
        assert await collected(objects.get("a/b.bin")) == HELLO

    async def test_a_put_replaces_the_object_and_changes_its_etag(self, objects: Objects) -> None:
        first = await objects.put("a", b"one")
        second = await objects.put("a", b"two")

        assert first.etag != second.etag
        assert await objects.read("a") == b"two"

    async def test_an_empty_object_is_an_object(self, objects: Objects) -> None:
        await objects.put("empty", b"", size_bytes=0)
        await objects.put("empty-stream", stream())

        assert (await objects.head("empty")).size_bytes == 0  # type: ignore[union-attr]
        assert await objects.read("empty") == b""
        assert await collected(objects.get("empty")) == b""
        assert await collected(objects.get("empty-stream")) == b""

    @pytest.mark.parametrize("size_bytes", [1, MIB - 1, MIB, MIB + 1, 20 * MIB + 3])
    async def test_a_stream_of_odd_chunks_is_stored_whole(self, objects: Objects, size_bytes: int) -> None:
        data = noise(size_bytes)
        cuts = [data[at : at + 300_007] for at in range(0, size_bytes, 300_007)]

        info = await objects.put("s", stream(*cuts), sha256=hashlib.sha256(data).hexdigest(), size_bytes=size_bytes)

        assert info.size_bytes == size_bytes
        assert await collected(objects.get("s")) == data

    async def test_chunks_have_at_most_one_mebibyte(self, objects: Objects) -> None:
        await objects.put("s", noise(3 * MIB))

        sizes = [len(chunk) async for chunk in objects.get("s")]

        assert sum(sizes) == 3 * MIB
        assert max(sizes) <= MIB

    async def test_objects_survive_another_opening(self, open_objects: OpenObjects) -> None:
        first = open_objects()
        info = await first.put("a", HELLO)
        await first.close()

        assert await open_objects().head("a") == info

    # Refused content

    async def test_altered_bytes_are_refused_and_leave_nothing(self, objects: Objects) -> None:
        with pytest.raises(InvalidInput, match="cut off or altered") as refused:
            await objects.put("a", b"hello, World", sha256=HELLO_SHA256)

        assert refused.value.data["expected_sha256"] == HELLO_SHA256
        assert refused.value.data["actual_sha256"] == hashlib.sha256(b"hello, World").hexdigest()
        assert refused.value.data["size_bytes"] == 12
        assert await objects.head("a") is None
        assert await keys(objects, "") == []

    @pytest.mark.parametrize("size_bytes", [11, 13])
    async def test_another_length_than_announced_is_refused(self, objects: Objects, size_bytes: int) -> None:
        with pytest.raises(InvalidInput, match=f"12 bytes, not {size_bytes}"):
            await objects.put("a", HELLO, size_bytes=size_bytes)

        assert await objects.head("a") is None

    @pytest.mark.parametrize("cut", [0, 1, 9 * MIB, 20 * MIB - 1])
    async def test_a_truncated_stream_leaves_the_old_object(self, objects: Objects, cut: int) -> None:
        data = noise(20 * MIB)
        await objects.put("a", HELLO)

        with pytest.raises(InvalidInput, match="cut off or altered"):
            await objects.put("a", stream(data[:cut]), sha256=hashlib.sha256(data).hexdigest())

        assert await objects.read("a") == HELLO

    async def test_a_stream_that_runs_over_its_announced_length_is_cut_off(self, objects: Objects) -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += MIB
                yield bytes(MIB)

        with pytest.raises(InvalidInput, match="not 100"):
            await objects.put("a", endless(), size_bytes=100)

        assert sent < 64 * MIB
        assert await objects.head("a") is None

    async def test_a_source_that_breaks_leaves_nothing(self, objects: Objects) -> None:
        async def breaking() -> AsyncIterator[bytes]:
            yield noise(9 * MIB)
            raise ConnectionResetError("the client went away")

        with pytest.raises(ConnectionResetError, match="went away"):
            await objects.put("a", breaking())

        assert await objects.head("a") is None
        assert await keys(objects, "") == []

    async def test_a_cancelled_put_leaves_nothing(self, objects: Objects) -> None:
        started = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield noise(9 * MIB)
            started.set()
            await asyncio.Event().wait()

        put = asyncio.create_task(objects.put("a", stuck()))
        await started.wait()
        put.cancel()

        with pytest.raises(asyncio.CancelledError):
            await put
        assert await objects.head("a") is None

    @pytest.mark.parametrize("sha256", ["", "abc", HELLO_SHA256.upper(), HELLO_SHA256 + "0"])
    async def test_a_malformed_digest_is_refused(self, objects: Objects, sha256: str) -> None:
        with pytest.raises(InvalidInput, match="malformed"):
            await objects.put("a", HELLO, sha256=sha256)

    @pytest.mark.parametrize(
        "key",
        ["", "/a", "a/", "a//b", "../a", "a/..", "a/../b", "./a", "a b", "a\\b", "ü", "a\x00b", "a\n", "a%2e", "a@",
         "k" * 251, "/".join(["k" * 100] * 9)],
    )  # fmt: skip
    async def test_a_malformed_key_is_refused_everywhere(self, objects: Objects, key: str) -> None:
        with pytest.raises(InvalidInput):
            await objects.put(key, HELLO)
        with pytest.raises(InvalidInput):
            await collected(objects.get(key))
        with pytest.raises(InvalidInput):
            await objects.read(key)
        with pytest.raises(InvalidInput):
            await objects.head(key)
        with pytest.raises(InvalidInput):
            await objects.delete(key)
        with pytest.raises(InvalidInput):
            await objects.start_multipart(key)
        with pytest.raises(InvalidInput):
            await objects.presign("GET", key, expires=timedelta(minutes=1))

    @pytest.mark.parametrize("key", ["a..b", "...", "-", "A.b_c-d/0", "k" * 250, "/".join(["k" * 99] * 9)])
    async def test_an_unusual_key_is_a_key(self, objects: Objects, key: str) -> None:
        await objects.put(key, HELLO)

        assert await objects.read(key) == HELLO
        assert await keys(objects, "") == [key]

    # Conditions

    async def test_if_absent_writes_once(self, objects: Objects) -> None:
        await objects.put("a", b"one", if_absent=True)

        with pytest.raises(VersionConflict):
            await objects.put("a", b"two", if_absent=True)
        assert await objects.read("a") == b"one"

    async def test_if_absent_holds_for_large_streams(self, objects: Objects) -> None:
        data = noise(20 * MIB)
        await objects.put("a", stream(data), if_absent=True)

        with pytest.raises(VersionConflict):
            await objects.put("a", stream(noise(20 * MIB, seed=2)), if_absent=True)
        assert await collected(objects.get("a")) == data

    async def test_if_match_writes_over_the_object_it_names(self, objects: Objects) -> None:
        first = await objects.put("a", b"one")

        second = await objects.put("a", b"two", if_match=first.etag)

        assert await objects.read("a") == b"two"
        with pytest.raises(VersionConflict):
            await objects.put("a", b"three", if_match=first.etag)
        with pytest.raises(VersionConflict):
            await objects.put("a", stream(noise(20 * MIB)), if_match=first.etag)
        assert await objects.head("a") == second

    async def test_if_match_needs_an_object(self, objects: Objects) -> None:
        with pytest.raises(VersionConflict):
            await objects.put("a", b"one", if_match="0123")

        assert await objects.head("a") is None

    async def test_of_many_who_create_a_key_exactly_one_wins(self, open_objects: OpenObjects) -> None:
        stores = [open_objects(), open_objects()]

        outcomes = await asyncio.gather(
            *(stores[n % 2].put("a", f"writer {n}".encode(), if_absent=True) for n in range(20)), return_exceptions=True
        )

        winners = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
        assert len(winners) == 1
        assert all(isinstance(each, VersionConflict) for n, each in enumerate(outcomes) if n not in winners)
        assert await stores[0].read("a") == f"writer {winners[0]}".encode()

    async def test_of_many_who_replace_an_etag_exactly_one_wins_each_round(self, open_objects: OpenObjects) -> None:
        stores = [open_objects(), open_objects()]
        objects = stores[0]
        info = await objects.put("a", b"start")
        for round_number in range(5):
            outcomes = await asyncio.gather(
                *(stores[n % 2].put("a", f"{round_number} {n}".encode(), if_match=info.etag) for n in range(10)),
                return_exceptions=True,
            )

            winners = [each for each in outcomes if not isinstance(each, BaseException)]
            assert len(winners) == 1
            info = winners[0]
            assert await objects.head("a") == info

    # Reading

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [(0, None, HELLO), (0, 5, b"hello"), (7, None, b"world"), (7, 2, b"wo"), (11, 1, b"d"), (7, 100, b"world"),
         (3, 0, b""), (0, 0, b"")],
    )  # fmt: skip
    async def test_a_range_is_what_it_says(
        self, objects: Objects, start: int, length: int | None, expected: bytes
    ) -> None:
        await objects.put("a", HELLO)

        assert await collected(objects.get("a", start=start, length=length)) == expected

    async def test_a_range_deep_in_a_large_object_is_exact(self, objects: Objects) -> None:
        data = noise(9 * MIB)
        await objects.put("a", data)

        got = await collected(objects.get("a", start=5 * MIB + 7, length=2 * MIB + 1))

        assert got == data[5 * MIB + 7 : 7 * MIB + 8]

    @pytest.mark.parametrize(("start", "length"), [(12, None), (13, 1), (10**15, None), (-1, None), (0, -1)])
    async def test_a_range_behind_the_end_is_refused(self, objects: Objects, start: int, length: int | None) -> None:
        await objects.put("a", HELLO)

        with pytest.raises(InvalidInput):
            await collected(objects.get("a", start=start, length=length))

    async def test_what_is_not_there_is_not_found(self, objects: Objects) -> None:
        await objects.put("a/b", HELLO)

        for key in ("a", "a/b/c", "c"):
            assert await objects.head(key) is None
            with pytest.raises(NotFound):
                await collected(objects.get(key))
            with pytest.raises(NotFound):
                await collected(objects.get(key, length=0))
            with pytest.raises(NotFound):
                await objects.read(key)

    async def test_read_refuses_more_than_its_bound(self, objects: Objects) -> None:
        await objects.put("a", HELLO)

        assert await objects.read("a", bytes_max=12) == HELLO
        with pytest.raises(TooLarge, match="12 bytes, more than 11"):
            await objects.read("a", bytes_max=11)

    async def test_a_reader_keeps_the_object_it_began_with_or_is_told(self, objects: Objects) -> None:
        one, two = noise(9 * MIB, seed=1), noise(9 * MIB, seed=2)
        await objects.put("a", one)

        reading = objects.get("a")
        got = await anext(reading)
        await objects.put("a", two)
        # A server may give the old bytes up: then the reader is told, and never given a mixture.
        with suppress(StoreUnavailable):
            async for chunk in reading:
                got += chunk
            assert len(got) == len(one)

        assert one.startswith(got)
        assert await collected(objects.get("a")) == two

    async def test_an_abandoned_reader_lets_go(self, objects: Objects) -> None:
        await objects.put("a", noise(9 * MIB))

        # More than any pool of connections or threads.
        for _ in range(100):
            reading = objects.get("a")
            await anext(reading)
            await reading.aclose()  # type: ignore[attr-defined]

        assert (await objects.head("a")).size_bytes == 9 * MIB  # type: ignore[union-attr]

    # Delete and list

    async def test_deleting_twice_changes_nothing(self, objects: Objects) -> None:
        await objects.put("a/b/c", HELLO)
        await objects.put("a/d", HELLO)

        await objects.delete("a/b/c")
        await objects.delete("a/b/c")

        assert await keys(objects, "") == ["a/d"]
        await objects.put("a/b/c", b"again", if_absent=True)
        assert await objects.read("a/b/c") == b"again"

    async def test_keys_are_listed_in_bytewise_order(self, objects: Objects) -> None:
        expected = ["A", "a-b", "a.b", "a/a", "a/b/c", "a/b0", "a0", "aa", "b"]
        for key in reversed(expected):
            await objects.put(key, HELLO)

        assert await keys(objects, "") == expected
        for position, key in enumerate(expected):
            assert await keys(objects, "", after=key) == expected[position + 1 :]
        assert await keys(objects, "a/") == ["a/a", "a/b/c", "a/b0"]
        assert await keys(objects, "a/b") == ["a/b/c", "a/b0"]
        assert await keys(objects, "a/", after="a/b") == ["a/b/c", "a/b0"]
        assert await keys(objects, "a/b/", after="b") == []
        assert await keys(objects, "x/y") == []

    async def test_more_keys_than_a_batch_are_all_listed(self, objects: Objects) -> None:
        expected = [f"many/{n:04}" for n in range(1203)]
        for at in range(0, len(expected), 50):
            await asyncio.gather(*(objects.put(key, b"x") for key in expected[at : at + 50]))

        found = [info async for info in objects.list("many/")]

        assert [info.key for info in found] == expected
        assert {info.size_bytes for info in found} == {1}
        assert found[7] == await objects.head("many/0007")

    @pytest.mark.parametrize("prefix", ["/", "a//", "../", "a/../b", "ü", "a*"])
    async def test_a_prefix_that_no_key_has_is_refused(self, objects: Objects, prefix: str) -> None:
        with pytest.raises(InvalidInput):
            await keys(objects, prefix)

    # Multipart

    async def test_parts_stored_out_of_order_are_joined_by_number(self, objects: Objects) -> None:
        data = noise(11 * MIB)
        upload = await objects.start_multipart("a")
        third = await objects.put_part("a", upload, 7, data[10 * MIB :])
        first = await objects.put_part("a", upload, 1, data[: 5 * MIB])
        second = await objects.put_part("a", upload, 2, data[5 * MIB : 10 * MIB])

        assert await objects.head("a") is None
        assert list(await objects.parts("a", upload)) == [first, second, third]
        info = await objects.complete_multipart("a", upload, [third, first, second])

        assert info.size_bytes == 11 * MIB
        assert await objects.head("a") == info
        assert await collected(objects.get("a")) == data

    async def test_an_upload_is_resumed_by_another_process(self, open_objects: OpenObjects) -> None:
        data = noise(6 * MIB)
        first_process = open_objects()
        upload = await first_process.start_multipart("a")
        await first_process.put_part("a", upload, 1, data[: 5 * MIB])
        await first_process.close()

        second_process = open_objects()
        stored = list(await second_process.parts("a", upload))
        last = await second_process.put_part("a", upload, 2, data[5 * MIB :])
        await second_process.complete_multipart("a", upload, [*stored, last])

        assert [(part.number, part.size_bytes) for part in stored] == [(1, 5 * MIB)]
        assert await collected(second_process.get("a")) == data

    async def test_a_part_that_is_sent_again_is_replaced(self, objects: Objects) -> None:
        upload = await objects.start_multipart("a")
        old = await objects.put_part("a", upload, 1, b"old")
        new = await objects.put_part("a", upload, 1, b"newer")

        assert list(await objects.parts("a", upload)) == [new]
        with pytest.raises(InvalidInput):
            await objects.complete_multipart("a", upload, [old])
        await objects.complete_multipart("a", upload, [new])

        assert await objects.read("a") == b"newer"

    async def test_incomplete_or_wrong_parts_are_refused(self, objects: Objects) -> None:
        upload = await objects.start_multipart("a")
        small = await objects.put_part("a", upload, 1, b"small")
        last = await objects.put_part("a", upload, 2, b"last")

        for wrong in (
            [],
            [small, last],
            [small, small],
            [last, Part(3, last.etag, 4)],
            [Part(2, "0" * 32, 4)],
        ):
            with pytest.raises(InvalidInput):
                await objects.complete_multipart("a", upload, wrong)
        for number in (0, 10_001, -1):
            with pytest.raises(InvalidInput):
                await objects.put_part("a", upload, number, b"x")

        assert await objects.head("a") is None
        await objects.complete_multipart("a", upload, [last])
        assert await objects.read("a") == b"last"

    async def test_an_aborted_or_completed_upload_is_gone(self, objects: Objects) -> None:
        aborted = await objects.start_multipart("a")
        await objects.put_part("a", aborted, 1, b"x")
        await objects.abort_multipart("a", aborted)
        await objects.abort_multipart("a", aborted)
        completed = await objects.start_multipart("b")
        part = await objects.put_part("b", completed, 1, b"x")
        await objects.complete_multipart("b", completed, [part])

        for key, upload in (("a", aborted), ("b", completed), ("a", "no-such-upload"), ("a", "../../data")):
            with pytest.raises(NotFound):
                await objects.parts(key, upload)
            with pytest.raises(NotFound):
                await objects.put_part(key, upload, 1, b"x")
            with pytest.raises(NotFound):
                await objects.complete_multipart(key, upload, [part])
        assert await keys(objects, "") == ["b"]

    async def test_an_upload_belongs_to_its_key(self, objects: Objects) -> None:
        upload = await objects.start_multipart("a")

        with pytest.raises(NotFound):
            await objects.put_part("b", upload, 1, b"x")
        await objects.abort_multipart("b", upload)

        await objects.put_part("a", upload, 1, b"x")

    # Presigned requests

    async def test_a_presigned_get_needs_no_credentials(self, objects: Objects, send: Send) -> None:
        await objects.put("a/b", HELLO)

        request = await objects.presign("GET", "a/b", expires=timedelta(minutes=5))

        assert request.method == "GET"
        assert await send(request) == (200, HELLO)
        assert await send(request, headers={"Range": "bytes=7-8"}) == (206, b"wo")
        assert await send(request, headers={"Range": "bytes=-5"}) == (206, b"world")
        assert await send(request, headers={"Range": "bytes=7-"}) == (206, b"world")
        assert (await send(request, headers={"Range": "bytes=12-"}))[0] == 416

    async def test_a_presigned_put_stores_the_body(self, objects: Objects, send: Send) -> None:
        data = noise(3 * MIB)

        request = await objects.presign("PUT", "a/b", expires=timedelta(minutes=5))
        status, _ = await send(request, content=data)

        assert status == 200
        assert await collected(objects.get("a/b")) == data

    async def test_a_presigned_request_is_good_for_that_request_only(self, objects: Objects, send: Send) -> None:
        await objects.put("a", HELLO)
        await objects.put("b", b"secret")
        get = await objects.presign("GET", "a", expires=timedelta(minutes=5))
        put = await objects.presign("PUT", "c", expires=timedelta(minutes=5))

        altered = [
            PresignedRequest("GET", get.url.replace("/a?", "/b?")),
            PresignedRequest("PUT", get.url),
            PresignedRequest("DELETE", get.url),
            PresignedRequest("GET", put.url),
            PresignedRequest("GET", get.url[:-1] + ("0" if get.url[-1] != "0" else "1")),
            PresignedRequest("GET", get.url.partition("?")[0]),
        ]
        statuses = [(await send(request, content=b"x" if request.method == "PUT" else b""))[0] for request in altered]

        assert statuses == [403] * len(altered)
        assert await objects.read("a") == HELLO
        assert await keys(objects, "") == ["a", "b"]

    async def test_a_presigned_request_expires(self, objects: Objects, send: Send, eventually: Callable) -> None:  # type: ignore[type-arg]
        await objects.put("a", HELLO)
        request = await objects.presign("GET", "a", expires=timedelta(seconds=1))

        async def refused() -> bool:
            return (await send(request))[0] == 403

        began = time.monotonic()
        await eventually(refused)
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("method", ["DELETE", "get", "POST", ""])
    async def test_other_methods_are_not_presigned(self, objects: Objects, method: str) -> None:
        with pytest.raises(InvalidInput, match="GET or PUT"):
            await objects.presign(method, "a", expires=timedelta(minutes=1))

    @pytest.mark.parametrize("expires", [timedelta(0), timedelta(seconds=-1), timedelta(days=7, seconds=1)])
    async def test_an_expiry_out_of_bounds_is_refused(self, objects: Objects, expires: timedelta) -> None:
        with pytest.raises(InvalidInput, match="7 days"):
            await objects.presign("GET", "a", expires=expires)

    async def test_check_passes(self, objects: Objects) -> None:
        await objects.check()

        assert await keys(objects, "") == []


WRITER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    {imports}

    async def main() -> None:
        objects = {make}

        async def slow():
            for _ in range(30):
                yield bytes(1024 * 1024)
            print("sent", flush=True)
            await asyncio.Event().wait()

        await objects.put("killed", slow())

    asyncio.run(main())
""")
"""A process that stops in the middle of a put, to be killed there."""
