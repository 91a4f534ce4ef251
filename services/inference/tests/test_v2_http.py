"""The V2 door with an unmodified tritonclient, over a real socket."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from modelworks.events import PredictionCompleted
from onnx import TensorProto

http = pytest.importorskip("tritonclient.http")
from tritonclient.utils import InferenceServerException  # noqa: E402


@pytest.fixture
def triton(issuer: Any) -> Callable[..., Any]:
    """`await triton(running, lambda client, headers: ...)`: the blocking client in a thread of its own."""

    async def call(running: Any, do: Callable[[Any, dict[str, str]], Any]) -> Any:
        def work() -> Any:
            with http.InferenceServerClient(f"{running.address}/oip") as client:
                return do(client, issuer.headers())

        return await asyncio.to_thread(work)

    return call


def tensor(name: str, array: Any, datatype: str, **form: Any) -> Any:
    made = http.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, **form)
    return made


ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
async def test_tritonclient_predicts_in_every_form(
    serve: Any, deploy: Any, onnx_models: Any, triton: Any, binary_input: bool, binary_output: bool
) -> None:
    async with serve() as running:
        revision = await deploy(running, "acme/affine", onnx_models.affine())

        result = await triton(
            running,
            lambda client, headers: client.infer(
                "acme/affine",
                [tensor("x", ROWS, "FP32", binary_data=binary_input)],
                outputs=[http.InferRequestedOutput("y", binary_data=binary_output)],
                headers=headers,
                request_id="r-1",
            ),
        )

        np.testing.assert_allclose(result.as_numpy("y"), ROWS * 2 + 1)
        assert result.get_response()["id"] == "r-1"
        assert result.get_response()["model_version"] == revision


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_tritonclient_compresses_both_ways(
    serve: Any, deploy: Any, onnx_models: Any, triton: Any, coding: str
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        result = await triton(
            running,
            lambda client, headers: client.infer(
                "acme/affine", [tensor("x", ROWS, "FP32")], headers=headers,
                request_compression_algorithm=coding, response_compression_algorithm=coding,
            ),
        )  # fmt: skip

        np.testing.assert_allclose(result.as_numpy("y"), ROWS * 2 + 1)


@pytest.mark.parametrize(
    ("kind", "datatype", "values"),
    [
        (TensorProto.STRING, "BYTES", np.array([["grün".encode(), b""]], dtype=object)),
        (TensorProto.FLOAT16, "FP16", np.array([[1.5, -2.0]], np.float16)),
        (TensorProto.BOOL, "BOOL", np.array([[True, False]])),
        (TensorProto.INT64, "INT64", np.array([[-(2**63), 2**63 - 1]])),
        (TensorProto.UINT8, "UINT8", np.array([[0, 255]], np.uint8)),
        (TensorProto.DOUBLE, "FP64", np.array([[np.nan, np.inf]])),
    ],
)
async def test_tritonclient_sends_every_datatype(
    serve: Any, deploy: Any, onnx_models: Any, triton: Any, kind: int, datatype: str, values: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/same", onnx_models.identity(kind))

        result = await triton(
            running,
            lambda client, headers: client.infer("acme/same", [tensor("x", values, datatype)], headers=headers),
        )

        back = result.as_numpy("y")
        assert [str(value) for value in back.ravel()] == [str(value) for value in values.ravel()]


async def test_tritonclient_reads_all_that_describes_a_model(
    serve: Any, deploy: Any, onnx_models: Any, triton: Any
) -> None:
    async with serve() as running:
        revision = await deploy(
            running, "acme/affine", onnx_models.affine(), card="---\nmodelworks: {max_batch: 5}\n---\n"
        )

        def ask(client: Any, headers: dict[str, str]) -> dict[str, Any]:
            client.infer("acme/affine", [tensor("x", ROWS, "FP32")], headers=headers)
            return {
                "live": client.is_server_live(),
                "ready": client.is_server_ready(),
                "model ready": client.is_model_ready("acme/affine", headers=headers),
                "unknown ready": client.is_model_ready("acme/none", headers=headers),
                "server": client.get_server_metadata(headers=headers),
                "metadata": client.get_model_metadata("acme/affine", revision[:10], headers=headers),
                "config": client.get_model_config("acme/affine", headers=headers),
                "stats": client.get_inference_statistics("acme/affine", headers=headers),
                "all stats": client.get_inference_statistics(headers=headers),
                "index": client.get_model_repository_index(headers=headers),
            }

        told = await triton(running, ask)

        assert (told["live"], told["ready"], told["model ready"], told["unknown ready"]) == (True, True, True, False)
        assert "binary_tensor_data" in told["server"]["extensions"]
        assert told["metadata"] == {
            "name": "acme/affine",
            "versions": [revision],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
        assert told["config"]["max_batch_size"] == 5
        assert told["config"]["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
        assert told["stats"]["model_stats"][0]["inference_count"] == 2
        assert told["stats"]["model_stats"][0]["inference_stats"]["success"]["count"] == 1
        assert told["all stats"] == told["stats"]
        assert told["index"] == [{"name": "acme/affine", "version": revision, "state": "READY", "reason": ""}]


async def test_tritonclient_loads_and_unloads(serve: Any, registry: Any, onnx_models: Any, triton: Any) -> None:
    async with serve() as running:
        registry.commit("acme/affine", {"model.onnx": onnx_models.affine()})

        def drive(client: Any, headers: dict[str, str]) -> list[bool]:
            client.load_model("acme/affine", headers=headers)
            loaded = client.is_model_ready("acme/affine", headers=headers)
            client.unload_model("acme/affine", headers=headers)
            return [loaded, client.is_model_ready("acme/affine", headers=headers)]

        assert await triton(running, drive) == [True, False]


async def test_load_refuses_files_and_reports_a_failed_load(serve: Any, registry: Any, triton: Any) -> None:
    async with serve() as running:
        registry.commit("acme/broken", {"model.onnx": b"not a model"})

        def load(client: Any, headers: dict[str, str], **more: Any) -> str:
            with pytest.raises(InferenceServerException) as refused:
                client.load_model("acme/broken", headers=headers, **more)
            return f"{refused.value.status()} {refused.value.message()}"

        files = await triton(
            running, lambda client, headers: load(client, headers, config="{}", files={"file:1/model.onnx": b"x"})
        )
        failed = await triton(running, load)

        assert files.startswith("501")
        assert failed.startswith("400")
        assert "cannot load the model" in failed


async def test_raw_request_is_the_sole_input_and_answers_binary(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        answer = await running.http.post(
            "/oip/v2/models/acme/affine/infer", content=ROWS[:1].tobytes(),
            headers={"Inference-Header-Content-Length": "0"},
        )  # fmt: skip

        length = int(answer.headers["inference-header-content-length"])
        assert np.frombuffer(answer.content[length:], np.float32).tolist() == [1.0, 3.0, 5.0]


async def test_plain_json_works_without_any_header(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [[1, 2, 3]]}]}

        answer = await running.http.post("/oip/v2/models/acme/affine/infer", content=json.dumps(body))

        assert "inference-header-content-length" not in answer.headers
        assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [3.0, 5.0, 7.0]}]


async def test_json_too_large_for_the_loop_is_read_beside_it(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve(offload_bytes_min=10) as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        body = {"inputs": [{"name": "x", "shape": [9, 3], "datatype": "FP32", "data": [1] * 27}]}

        answer = await running.http.post("/oip/v2/models/acme/affine/infer", json=body)

        assert answer.json()["outputs"][0]["data"] == [3.0] * 27


async def test_classification_answers_the_best_classes(serve: Any, deploy: Any, onnx_models: Any, triton: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        result = await triton(
            running,
            lambda client, headers: client.infer(
                "acme/affine", [tensor("x", ROWS, "FP32")], headers=headers,
                outputs=[http.InferRequestedOutput("y", class_count=1)],
            ),
        )  # fmt: skip

        assert result.as_numpy("y").tolist() == [[b"5.000000:2"], [b"11.000000:2"]]


async def test_chosen_outputs_come_in_the_order_asked(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/pair", onnx_models.pair())
        two = [{"name": n, "shape": [1, 2], "datatype": "FP32", "data": [3, 4]} for n in ("b", "a")]
        url = "/oip/v2/models/acme/pair/infer"

        swapped = await running.http.post(
            url, json={"inputs": two, "outputs": [{"name": "difference"}, {"name": "sum"}]}
        )
        alone = await running.http.post(url, json={"inputs": two, "outputs": [{"name": "sum"}]})

        assert [output["name"] for output in swapped.json()["outputs"]] == ["difference", "sum"]
        assert [output["data"] for output in alone.json()["outputs"]] == [[6.0, 8.0]]


# --- refusals -----------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


@pytest.mark.parametrize(
    ("inputs", "more", "status", "says"),
    [
        ([{**GOOD, "name": "z"}], {}, 400, "takes inputs 'x'"),
        ([GOOD, {**GOOD, "name": "z"}], {}, 400, "takes inputs 'x'"),
        ([{**GOOD, "datatype": "FP64"}], {}, 400, "is FP32, the request has FP64"),
        ([{**GOOD, "shape": [3, 1]}], {}, 400, "has shape [-1, 3]"),
        ([{**GOOD, "shape": [3]}], {}, 400, "has shape [-1, 3]"),
        ([{**GOOD, "shape": [0, 3], "data": []}], {}, 400, "at least one row"),
        ([{**GOOD, "shape": [11, 3], "data": [1] * 33}], {}, 413, "at most 10"),
        ([GOOD], {"outputs": [{"name": "z"}]}, 400, "has no output 'z'"),
        ([GOOD], {"parameters": {"timeout": -1}}, 400, "microseconds"),
        ([GOOD], {"parameters": {"priority": "high"}}, 400, "priority"),
        ([GOOD], {"parameters": {"sequence_id": 5}}, 501, "sequences"),
    ],
)
async def test_wrong_tensors_are_refused_in_the_protocols_own_form(
    serve: Any, deploy: Any, onnx_models: Any, inputs: Any, more: Any, status: int, says: str
) -> None:
    async with serve(request_rows_max=10) as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        answer = await running.http.post("/oip/v2/models/acme/affine/infer", json={"inputs": inputs, **more})

        assert answer.status_code == status, answer.text
        assert says in answer.json()["error"]


async def test_harmless_parameters_of_tritonclient_are_taken(
    serve: Any, deploy: Any, onnx_models: Any, triton: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        result = await triton(
            running,
            lambda client, headers: client.infer(
                "acme/affine", [tensor("x", ROWS, "FP32")], headers=headers, priority=2, timeout=20_000_000,
                sequence_id=0, parameters={"note": "mine"},
            ),
        )  # fmt: skip

        assert result.as_numpy("y").shape == (2, 3)


async def test_refusals_have_the_right_status(serve: Any, deploy: Any, onnx_models: Any, issuer: Any) -> None:
    async with serve(body_bytes_max=1024) as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        infer = "/oip/v2/models/acme/affine/infer"
        stranger = httpx.AsyncClient(base_url=f"http://{running.address}")
        zeros = gzip.compress(bytes(2_000_000))

        async def status(method: str, path: str, **request: Any) -> int:
            answer = await running.http.request(method, path, **request)
            assert set(answer.json()) == {"error"}, answer.text
            return int(answer.status_code)

        assert await status("POST", "/oip/v2/models/acme/none/infer", json={"inputs": [GOOD]}) == 404
        assert await status("POST", "/oip/v2/models/acme/affine/versions/nope/infer", json={"inputs": [GOOD]}) == 404
        assert await status("GET", infer) == 405
        assert await status("POST", "/oip/v2/models/acme/affine/config") == 405
        assert await status("GET", "/oip/v2/models/acme/none") == 404
        assert await status("GET", "/oip/v2/nothing/here") == 404
        assert await status("POST", infer, content=b"{") == 400
        assert await status("POST", infer, content=bytes(2000)) == 413
        assert await status("POST", infer, content=zeros, headers={"Content-Encoding": "gzip"}) == 413
        assert await status("POST", infer, content=b"{}", headers={"Inference-Header-Content-Length": "-1"}) == 400
        assert await status("GET", "/oip/v2/systemsharedmemory/status") == 501
        assert await status("POST", "/oip/v2/models/acme/affine/generate", json={}) == 501
        assert await status("GET", "/oip/v2/trace/setting") == 501
        assert await status("POST", "/oip/v2/repository/models/acme/none/unload") == 404
        assert await status("POST", "/oip/v2/repository/models/acme/none/load") == 404
        for path in (infer, "/oip/v2/repository/index", "/oip/v2/repository/models/acme/affine/unload"):
            answer = await stranger.post(path, json={"inputs": [GOOD]})
            assert answer.status_code == 401
            assert "no access token" in answer.json()["error"]
        for role, scopes, path, expected in (
            ("auditor", ("predict",), infer, 403),
            ("consumer", ("audit",), infer, 403),
            ("consumer", ("deploy",), "/oip/v2/repository/models/acme/affine/unload", 403),
        ):
            headers = issuer.headers("someone", role, scopes=scopes)
            answer = await stranger.post(path, json={"inputs": [GOOD]}, headers=headers)
            assert answer.status_code == expected, answer.text
        await stranger.aclose()


async def test_model_fails_on_inputs_and_the_server_goes_on(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/lookup", onnx_models.lookup())
        url = "/oip/v2/models/acme/lookup/infer"
        ask = {"name": "x", "shape": [1, 1], "datatype": "INT64"}

        bad = await running.http.post(url, json={"inputs": [{**ask, "data": [99]}]})
        good = await running.http.post(url, json={"inputs": [{**ask, "data": [2]}]})

        assert bad.status_code in (400, 500)
        assert "model" in bad.json()["error"]
        assert good.json()["outputs"][0]["data"] == [20.0]


async def test_deadline_that_cannot_be_met_is_told_at_once(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve(slots=1) as running:
        await deploy(running, "acme/slow", onnx_models.slow())
        url = "/oip/v2/models/acme/slow/infer"
        row = {"name": "x", "shape": [64, 768], "datatype": "FP32", "data": [1] * (64 * 768)}
        long = asyncio.create_task(running.http.post(url, json={"inputs": [row]}))
        while not running.parts.scheduler.running:
            await asyncio.sleep(0.005)

        small = {"name": "x", "shape": [1, 768], "datatype": "FP32", "data": [1] * 768}
        late = await running.http.post(url, json={"inputs": [small], "parameters": {"timeout": 1000}})

        assert late.status_code == 503
        assert "deadline" in late.json()["error"]
        assert (await long).status_code == 200


async def test_caller_who_leaves_stops_the_run(serve: Any, deploy: Any, onnx_models: Any, eventually: Any) -> None:
    async with serve(slots=1) as running:
        await deploy(running, "acme/slow", onnx_models.slow())
        body = np.ones((512, 768), np.float32).tobytes()
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x", "shape": [512, 768], "datatype": "FP32",
                        "parameters": {"binary_data_size": len(body)},
                    }
                ]
            }
        ).encode()  # fmt: skip
        headers = {"Inference-Header-Content-Length": str(len(head))}

        with pytest.raises(httpx.ReadTimeout):
            await running.http.post("/oip/v2/models/acme/slow/infer", content=head + body, headers=headers, timeout=0.3)

        await eventually(lambda: running.parts.scheduler.running == 0, within=5)
        assert running.parts.models.get("acme/slow").statistics.execution_count == 0


async def test_each_online_prediction_is_told(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, eventually: Any
) -> None:
    told: list[Any] = []

    async def listen() -> None:
        async for delivery in stores.bus.tail([PredictionCompleted.topic]):
            told.append(delivery)  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    async with serve() as running:
        revision = await deploy(running, "acme/lookup", onnx_models.lookup())
        for value in (1, 99):
            await running.http.post(
                "/oip/v2/models/acme/lookup/infer",
                json={"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [value]}]},
            )
        await eventually(lambda: len(told) == 2)
    listening.cancel()

    events = [PredictionCompleted.model_validate_json(delivery.message.value, strict=True) for delivery in told]
    assert [event.status for event in events] == ["succeeded", "failed"]
    assert events[0].revision == revision
    assert (events[0].mouth, events[0].principal, events[0].input_bytes, events[0].output_bytes) == (
        "online",
        "tester",
        8,
        4,
    )
    assert told[0].message.headers["ce_actor"] == "tester"
    assert "traceparent" in told[0].message.headers


async def test_many_callers_at_once_share_batches(serve: Any, deploy: Any, onnx_models: Any, triton: Any) -> None:
    async with serve(slots=1) as running:
        await deploy(running, "acme/affine", onnx_models.affine())

        async def ask(n: int) -> list[float]:
            body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [n] * 3}]}
            answer = await running.http.post("/oip/v2/models/acme/affine/infer", json=body)
            data: list[float] = answer.json()["outputs"][0]["data"]
            return data

        answers = await asyncio.gather(*(ask(n) for n in range(200)))

        assert answers == [[2.0 * n + 1] * 3 for n in range(200)]
        stats = running.parts.models.get("acme/affine").statistics
        assert stats.inference_count == 200
        assert stats.execution_count <= 200


async def test_real_model_tells_real_files(serve: Any, deploy: Any, magika_model: bytes, triton: Any) -> None:
    async with serve() as running:
        await deploy(running, "google/magika", magika_model)
        rows = np.random.default_rng(0).integers(0, 256, (3, 2048), dtype=np.int32)

        result = await triton(
            running,
            lambda client, headers: client.infer("google/magika", [tensor("bytes", rows, "INT32")], headers=headers),
        )

        scores = result.as_numpy("target_label")
        assert scores.shape == (3, 214)
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-4)
