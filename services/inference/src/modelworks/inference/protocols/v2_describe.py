"""What V2 says of servers and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelworks.inference.engine.messages import TensorSpec
from modelworks.inference.engine.models import LoadedModel, Models

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters",
    "schedule_policy", "statistics",
)  # fmt: skip


def server() -> dict[str, Any]:
    """Server metadata."""
    return {"name": "modelworks", "version": "1", "extensions": list(EXTENSIONS)}


def metadata(model: LoadedModel) -> dict[str, Any]:
    """Model metadata."""
    return {
        "name": model.name,
        "versions": [model.revision],
        "platform": model.session.platform,
        "inputs": [_tensor(spec) for spec in model.session.inputs],
        "outputs": [_tensor(spec) for spec in model.session.outputs],
    }


def config(model: LoadedModel) -> dict[str, Any]:
    """Model configuration in Triton's form; dims leave the batch dimension out when there is one."""
    batch = model.max_batch if model.batched else 0
    answer: dict[str, Any] = {
        "name": model.name,
        "platform": model.session.platform,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": batch,
        "input": _configured(model.session.inputs, batched=batch > 0),
        "output": _configured(model.session.outputs, batched=batch > 0),
        "parameters": {"provider": {"string_value": model.session.provider}},
    }
    if batch:
        answer["dynamic_batching"] = {"max_queue_delay_microseconds": int(model.max_delay_seconds * 1e6)}
    return answer


def statistics(model: LoadedModel) -> dict[str, Any]:
    """Model statistics."""
    return model.statistics.described(model.name, model.revision, model.memory_bytes)


def index(models: Models, *, only_ready: bool) -> list[dict[str, Any]]:
    """The repository index: what is deployed, as this worker has it."""
    ready = [
        {"name": model.name, "version": model.revision, "state": "READY", "reason": ""} for model in models.all()
    ]  # fmt: skip
    if only_ready:
        return ready
    return ready + [
        {"name": name, "state": "UNAVAILABLE", "reason": why} for name, why in models.missing().items()
    ]  # fmt: skip


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(specs: Sequence[TensorSpec], *, batched: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "data_type": "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}",
            "dims": list(spec.shape[1:] if batched else spec.shape),
        }
        for spec in specs
    ]
