"""Inputs, agreement, latency and the whole measuring of a target, on small models and on a real one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from modelworks.optimizer.evaluation.agreement import answers, compare, guess_kind
from modelworks.optimizer.evaluation.evaluate import process_target
from modelworks.optimizer.evaluation.inputs import Unusable, find_inputs, from_npz, tokens
from modelworks.optimizer.evaluation.latency import bootstrap, paired_latency
from modelworks.optimizer.evaluation.session import Session
from modelworks.optimizer.machine import read_machine
from modelworks.optimizer.manifest import FileBytes
from modelworks.optimizer.measurement import TargetMeasurement
from modelworks.optimizer.order import Effort, Order
from modelworks.optimizer.passes import WorkError
from modelworks.optimizer.recipe import Rules

QUICK = Effort(rounds=5, seconds_max=0.2, samples_max=64, probe_samples=16)


def session(tmp_path: Path, data: bytes) -> Session:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    return Session(path, threads=1)


def save(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "inputs.npz", **arrays)
    return tmp_path / "inputs.npz"


def order(tmp_path: Path, model: bytes, **changed: Any) -> Order:
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source" / "model.onnx").write_bytes(model)
    given: dict[str, Any] = {
        "folder": str(tmp_path), "targets": ("model.onnx",), "pass_name": "int8", "options": {}, "rules": Rules(),
        "effort": QUICK, "memory_bytes_max": 1 << 30,
    }  # fmt: skip
    return Order(**given | changed)


def measure(one: Order) -> TargetMeasurement:
    return process_target(one, "model.onnx", read_machine(), lambda stage, share: None)


class TestInputs:
    def test_arrays_named_as_the_inputs_are_taken(self, tmp_path: Path, models: ModuleType) -> None:
        x = np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32)

        found = from_npz(session(tmp_path, models.classifier()), save(tmp_path, x=x), samples_max=100, shown="f")

        assert (found.samples, found.about.source, found.whole) == (30, "repository", False)
        assert np.array_equal(np.sort(found.arrays["x"], axis=0), np.sort(x, axis=0))
        assert np.array_equal(found.feed(28, 2)["x"], found.arrays["x"][28:])
        assert np.array_equal(found.repeated(29, 2)["x"], found.arrays["x"][[29, 0]])

    def test_of_more_samples_than_wanted_the_same_are_drawn_from_the_whole_set(
        self, tmp_path: Path, models: ModuleType
    ) -> None:
        x = np.arange(1000, dtype=np.float32)[:, None].repeat(64, axis=1)

        model, path = session(tmp_path, models.classifier()), save(tmp_path, x=x)
        found, again = (from_npz(model, path, samples_max=100, shown="f") for _ in range(2))

        drawn = found.arrays["x"][:, 0]
        assert found.samples == len(set(drawn)) == 100
        assert drawn.min() < 100
        assert drawn.max() > 900
        assert np.array_equal(drawn, again.arrays["x"][:, 0])

    @pytest.mark.parametrize("dtype", ["float64", "float16"])
    def test_other_width_of_the_same_kind_is_converted(self, tmp_path: Path, models: ModuleType, dtype: str) -> None:
        x = np.zeros((20, 64), dtype=dtype)

        found = from_npz(session(tmp_path, models.classifier()), save(tmp_path, x=x), samples_max=100, shown="f")

        assert found.arrays["x"].dtype == np.float32

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"y": np.zeros((5, 64), np.float32)}, r"no array for input x \(it has: y\)"),
            ({"x": np.zeros((5, 65), np.float32)}, r"'x' is float32 \[5, 65\], the model wants float32 \[-1, 64\]"),
            ({"x": np.zeros((5, 2, 64), np.float32)}, r"the model wants float32 \[-1, 64\]"),
            ({"x": np.zeros((5, 64), np.int32)}, "'x' is int32, the model wants float32"),
            ({"x": np.zeros((0, 64), np.float32)}, "it holds no samples"),
            ({"x": np.float32(1)}, "the model wants"),
            ({"x": np.array([{"a": 1}], dtype=object)}, "cannot be read as .npz"),
        ],
    )
    def test_arrays_that_do_not_fit_are_refused_by_name(
        self, tmp_path: Path, models: ModuleType, arrays: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(Unusable, match=said):
            from_npz(session(tmp_path, models.classifier()), save(tmp_path, **arrays), samples_max=9, shown="f")

    def test_integers_outside_the_inputs_type_are_refused(self, tmp_path: Path, models: ModuleType) -> None:
        ids = np.full((5, 4), 1 << 63, dtype=np.uint64)

        with pytest.raises(Unusable, match="values outside int64"):
            from_npz(
                session(tmp_path, models.embedder()), save(tmp_path, input_ids=ids, attention_mask=ids), samples_max=9,
                shown="f",
            )  # fmt: skip

    def test_different_numbers_of_samples_are_refused(self, tmp_path: Path, models: ModuleType) -> None:
        path = save(tmp_path, input_ids=np.ones((5, 4), np.int64), attention_mask=np.ones((6, 4), np.int64))

        with pytest.raises(Unusable, match="different numbers of samples"):
            from_npz(session(tmp_path, models.embedder()), path, samples_max=9, shown="f")

    def test_file_that_is_no_npz_is_refused(self, tmp_path: Path, models: ModuleType) -> None:
        (tmp_path / "inputs.npz").write_bytes(b"PK\x03\x04 but not for long")

        with pytest.raises(Unusable, match=r"cannot be read as \.npz"):
            from_npz(session(tmp_path, models.classifier()), tmp_path / "inputs.npz", samples_max=9, shown="f")

    def test_small_file_that_unpacks_to_much_is_refused_unread(self, tmp_path: Path, models: ModuleType) -> None:
        import zipfile

        with (
            zipfile.ZipFile(tmp_path / "inputs.npz", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("x.npy", "w", force_zip64=True) as file,
        ):
            file.write(bytes(10 << 20))

        with pytest.raises(Unusable, match="unpacks to 10485760 bytes, at most 1000000"):
            from_npz(
                session(tmp_path, models.classifier()), tmp_path / "inputs.npz", samples_max=9, shown="f",
                unpacked_bytes_max=1_000_000,
            )  # fmt: skip

    def test_fixed_batch_takes_samples_in_its_size(self, tmp_path: Path, models: ModuleType) -> None:
        model = session(tmp_path, models.classifier(batch=2))

        found = from_npz(model, save(tmp_path, x=np.zeros((6, 64), np.float32)), samples_max=9, shown="f")

        assert (found.samples, found.whole) == (3, True)
        assert found.feed(0, 1)["x"].shape == (2, 64)

    def test_files_become_samples_by_the_declared_rule(self) -> None:
        rule = FileBytes(kind="file-bytes", first=4, last=3, padding=256, strip=True, block_bytes=8)

        assert tokens(b"  ab ", rule) == [97, 98, 32, 256, 32, 97, 98]
        assert tokens(b"a", rule) == [97, 256, 256, 256, 256, 256, 97]
        assert tokens(b"  abcdefghijkl\n", rule) == [97, 98, 99, 100, 106, 107, 108]

    def test_without_any_the_inputs_are_random_and_say_so(self, tmp_path: Path, models: ModuleType) -> None:
        model = session(tmp_path, models.embedder(vocabulary=30))

        found, notes = find_inputs(model, arrays=[], files=[], declared={}, samples_max=64, root=tmp_path)

        assert found.about.source == "synthetic"
        assert found.arrays["input_ids"].max() < 30
        assert set(np.unique(found.arrays["attention_mask"])) == {1}
        assert model.run(found.feed(0, 8))[0].shape == (8, 64)
        assert notes == ()

    def test_arrays_that_do_not_fit_are_told_before_random_ones_are_used(
        self, tmp_path: Path, models: ModuleType
    ) -> None:
        path = save(tmp_path, wrong=np.zeros((5, 64), np.float32))

        found, notes = find_inputs(
            session(tmp_path, models.classifier()), arrays=[path], files=[], declared={}, samples_max=9, root=tmp_path
        )

        assert found.about.source == "synthetic"
        assert notes == ("inputs.npz was not used: it has no array for input x (it has: wrong).",)


class TestAgreement:
    def compared(self, left: Any, right: Any, name: str = "y", **declared: Any) -> Any:
        left, right = np.asarray(left), np.asarray(right)
        return compare([[left]], [[right]], names=[name], declared=declared, samples=len(left), batch=8, whole=False)

    def test_classes_agree_by_their_largest_value(self) -> None:
        found = self.compared([[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.7, 0.3]])

        assert found.outputs[0].kind == "classes"
        assert not found.outputs[0].declared
        assert found.agreement == 0.5
        assert found.outputs[0].difference_max == pytest.approx(0.3)

    def test_vectors_agree_by_their_direction(self) -> None:
        found = self.compared([[1.0, 0.0], [0.0, 5.0]], [[2.0, 0.1], [5.0, 0.0]], "embedding")

        assert found.outputs[0].kind == "vectors"
        assert found.agreement == 0.5
        assert found.outputs[0].cosine_min == 0.0
        assert found.cosine_mean == pytest.approx(0.4994, abs=1e-4)

    def test_declared_kind_goes_before_the_guess(self) -> None:
        found = self.compared([[1.0, 2.0]], [[2.0, 1.9]], y="classes")

        assert (found.outputs[0].kind, found.outputs[0].declared, found.agreement) == ("classes", True, 0.0)

    def test_single_values_agree_within_a_relative_error(self) -> None:
        assert self.compared([[100.0], [100.0]], [[104.0], [106.0]]).agreement == 0.5

    def test_integers_agree_when_equal(self) -> None:
        found = self.compared([[1, 2], [3, 4]], [[1, 2], [3, 5]])

        assert (found.outputs[0].kind, found.agreement, found.cosine_mean) == ("exact", 0.5, None)

    def test_texts_agree_when_equal(self) -> None:
        assert self.compared(np.array(["cat", "dog"], object), np.array(["cat", "cow"], object)).agreement == 0.5

    def test_answer_that_is_no_number_disagrees_and_is_told_by_side(self) -> None:
        left = [[np.nan, 1.0], [0.9, 0.1], [0.9, 0.1]]
        right = [[np.nan, 1.0], [np.inf, 0.1], [0.9, 0.1]]

        found = self.compared(left, right, y="classes")

        assert found.agreement == pytest.approx(1 / 3)
        assert (found.original_not_finite, found.variant_not_finite) == (1, 1)

    def test_zero_vector_is_like_no_other(self) -> None:
        assert self.compared([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]], "embedding").agreement == 0.5

    def test_the_worst_output_speaks_for_all(self) -> None:
        good, bad = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])

        found = compare(
            [[good, good]], [[good, bad]], names=["a_logits", "b_logits"], declared={}, samples=1, batch=8, whole=False
        )

        assert [output.agreement for output in found.outputs] == [1.0, 0.0]
        assert found.agreement == 0.0

    def test_output_without_a_row_for_each_input_is_left_out(self) -> None:
        loss, y = np.float32(1.0), np.array([[0.0, 1.0]])

        found = compare([[loss, y]], [[loss, y]], names=["loss", "y"], declared={}, samples=1, batch=8, whole=False)

        assert [output.name for output in found.outputs] == ["y"]

    def test_neighbours_show_what_cosine_hides(self) -> None:
        rng = np.random.default_rng(0)
        left = rng.standard_normal((100, 16)) + 20
        right = left + rng.standard_normal((100, 16)) * 0.5

        found = self.compared(left, right, "embedding").outputs[0]

        assert found.cosine_mean > 0.99
        assert found.neighbours < 0.95

    def test_tokens_agree_by_their_share(self) -> None:
        left = np.array([[[1.0, 0.0], [0.0, 1.0]]])
        right = np.array([[[1.0, 0.0], [1.0, 0.0]]])

        assert self.compared(left, right, "token_logits").agreement == 0.5

    @pytest.mark.parametrize(
        ("name", "rows", "kind"),
        [
            ("output", [[0.2, 0.8]], "classes"), ("output", [[2.0, -3.0]], "vectors"), ("logits", [[2.0, -3.0]], "classes"),
            ("last_hidden_state", [[0.5, 0.5]], "vectors"), ("score", [[0.5]], "values"),
        ],
    )  # fmt: skip
    def test_guess(self, name: str, rows: Any, kind: str) -> None:
        assert guess_kind(name, list(np.array(rows))) == kind

    def test_outputs_beyond_the_bound_are_refused(self, tmp_path: Path, models: ModuleType) -> None:
        model = session(tmp_path, models.classifier())
        inputs, _ = find_inputs(model, arrays=[], files=[], declared={}, samples_max=64, root=tmp_path)

        with pytest.raises(WorkError, match="at most 100 are compared"):
            answers(model, inputs, samples=64, batch=8, bytes_max=100)


class TestLatency:
    def test_model_against_itself_is_as_fast(self, tmp_path: Path, models: ModuleType) -> None:
        model = session(tmp_path, models.classifier(width=512))
        feeds = [{"x": np.random.default_rng(n).standard_normal((1, 512)).astype(np.float32)} for n in range(4)]

        found = paired_latency(model, model, feeds, batch=1, threads=1, rounds=15, seconds_max=5)

        assert 0.7 < found.ratio < 1.4
        assert found.ratio_low <= found.ratio <= found.ratio_high
        assert found.rounds == 15
        assert found.original_ms > 0

    def test_slower_model_is_found_slower(self, tmp_path: Path, models: ModuleType) -> None:
        small, large = tmp_path / "small", tmp_path / "large"
        small.mkdir()
        large.mkdir()
        feeds = [{"x": np.zeros((64, 64), np.float32)}]

        found = paired_latency(
            session(small, models.classifier(classes=2)), session(large, models.classifier(classes=5000)), feeds, batch=64,
            threads=1, rounds=7, seconds_max=5,
        )  # fmt: skip

        assert found.ratio_low > 1.5

    def test_time_bound_ends_the_rounds_but_not_before_five(self, tmp_path: Path, models: ModuleType) -> None:
        model = session(tmp_path, models.classifier())

        found = paired_latency(
            model, model, [{"x": np.zeros((1, 64), np.float32)}], batch=1, threads=1, rounds=1000, seconds_max=0.001
        )

        assert found.rounds == 5

    def test_interval_holds_the_median_and_is_repeatable(self) -> None:
        values = [1.0, 1.1, 0.9, 1.2, 1.05, 0.95, 1.0]

        low, high = bootstrap(values)

        assert 0.9 <= low <= 1.0 <= high <= 1.2
        assert bootstrap(values) == (low, high)


class TestTarget:
    def test_classifier_gets_smaller_and_keeps_its_answers(self, tmp_path: Path, models: ModuleType) -> None:
        one = order(tmp_path, models.classifier(), arrays=("inputs.npz",))
        x = np.random.default_rng(5).standard_normal((50, 64)).astype(np.float32)
        np.savez(tmp_path / "source" / "inputs.npz", x=x)

        found = measure(one)

        assert found.size.ratio > 2.5
        assert found.agreement.agreement > 0.85
        assert [point.batch for point in found.latency] == [1, 8]
        assert {entry.operator for entry in found.profile.variant} & {
            "MatMulInteger",
            "DynamicQuantizeMatMul",
            "MatMulIntegerToFloat",
        }
        assert (tmp_path / "variant" / "model.onnx").stat().st_size == found.size.variant_bytes
        assert not (tmp_path / "candidates").exists()

    def test_source_is_left_as_it_was(self, tmp_path: Path, models: ModuleType) -> None:
        data = models.classifier()
        before = {"model.onnx"}

        measure(order(tmp_path, data))

        assert (tmp_path / "source" / "model.onnx").read_bytes() == data
        assert {path.name for path in (tmp_path / "source").iterdir()} == before

    def test_convolution_is_also_tried_untouched_where_something_else_can_shrink(
        self, tmp_path: Path, magika_model: Path
    ) -> None:
        found = measure(order(tmp_path, magika_model.read_bytes()))

        assert [candidate.name.removesuffix("-7bit") for candidate in found.candidates][1] == "uint8"
        assert found.candidates[2].name.endswith("conv-left")
        assert sum(candidate.chosen for candidate in found.candidates) == 1

    def test_real_model_on_real_files(
        self, tmp_path: Path, magika_model: Path, magika_inputs: np.ndarray[Any, Any]
    ) -> None:
        one = order(
            tmp_path,
            magika_model.read_bytes(),
            arrays=("evaluation/inputs.npz",),
            effort=Effort(rounds=5, samples_max=96),
        )
        (tmp_path / "source" / "evaluation").mkdir()
        np.savez(tmp_path / "source" / "evaluation" / "inputs.npz", bytes=magika_inputs)

        found = measure(one)

        assert found.inputs.source == "repository"
        assert 3.7 < found.size.ratio < 3.9
        assert found.agreement.agreement >= 0.96
        assert found.agreement.outputs[0].kind == "classes"
        assert found.agreement.outputs[0].cosine_mean > 0.99

    def test_embedding_model_is_compared_by_cosine(self, tmp_path: Path, models: ModuleType) -> None:
        rng = np.random.default_rng(3)
        one = order(tmp_path, models.embedder(), arrays=("inputs.npz",))
        np.savez(
            tmp_path / "source" / "inputs.npz", input_ids=rng.integers(0, 500, (60, 12)),
            attention_mask=np.ones((60, 12), np.int64),
        )  # fmt: skip

        found = measure(one)

        [output] = found.agreement.outputs
        assert output.kind == "vectors"
        assert output.cosine_mean > 0.98
        assert output.neighbours is not None

    def test_fixed_batch_is_measured_as_it_is_and_the_report_says_so(self, tmp_path: Path, models: ModuleType) -> None:
        found = measure(order(tmp_path, models.classifier(batch=4)))

        assert [point.batch for point in found.latency] == [1]
        assert any("first dimension is fixed" in note for note in found.notes)

    def test_only_convolution_still_gives_a_variant(self, tmp_path: Path, models: ModuleType) -> None:
        found = measure(order(tmp_path, models.convolver()))

        assert {candidate.name.removesuffix("-7bit") for candidate in found.candidates} == {"int8", "uint8"}

    def test_original_that_answers_with_nan_is_told_apart(self, tmp_path: Path, models: ModuleType) -> None:
        found = measure(order(tmp_path, models.not_a_number()))

        assert found.agreement.original_not_finite > 0
        assert found.agreement.agreement < 1

    def test_comparison_that_takes_too_long_is_cut_short_and_the_report_says_so(
        self, tmp_path: Path, models: ModuleType
    ) -> None:
        effort = Effort(rounds=5, seconds_max=0.2, samples_max=200, seconds_compare_max=1e-6)
        one = order(tmp_path, models.classifier(), arrays=("inputs.npz",), effort=effort)
        np.savez(tmp_path / "source" / "inputs.npz", x=np.random.default_rng(5).standard_normal((150, 64)))

        found = measure(one)

        assert (found.inputs.samples, found.agreement.samples) == (150, 64)
        assert found.notes == ("Answers were compared on 64 of 150 inputs, chosen at random: 1e-06 s were over.",)

    def test_profile_names_what_takes_the_time(self, tmp_path: Path, models: ModuleType) -> None:
        found = measure(order(tmp_path, models.classifier(width=1024), options={"weight_type": "uint8"}))

        assert found.profile.original[0].operator == "MatMul"
        assert 0 < found.profile.original[0].ms < 3 * found.latency[0].original_ms

    def test_options_fix_the_candidate(self, tmp_path: Path, models: ModuleType) -> None:
        options = {"weight_type": "uint8", "per_channel": False, "reduce_range": True}

        found = measure(order(tmp_path, models.classifier(), options=options))

        [candidate] = found.candidates
        assert candidate.name == "uint8-7bit"
        assert candidate.facts["per_channel"] is False

    def test_large_tensors_beside_the_model_are_read_and_counted(self, tmp_path: Path, models: ModuleType) -> None:
        import onnx

        one = order(tmp_path, b"")
        model = onnx.load_from_string(models.classifier(width=256))
        onnx.save(
            model,
            str(tmp_path / "source" / "model.onnx"),
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=0,
        )

        found = measure(one)

        assert found.beside_original == ("model.onnx.data",)
        assert found.size.original_bytes > 256 * 256 * 4
        assert found.size.ratio > 3

    @pytest.mark.parametrize(
        ("model", "code", "said"),
        [
            (b"not a model at all", "not-onnx", "model.onnx is not a valid ONNX model"),
            (b"", "not-onnx", "model.onnx is not a valid ONNX model"),
            ("truncated", "not-onnx", "model.onnx is not a valid ONNX model"),
            ("unknown_operator", "not-runnable", "model.onnx cannot be loaded: .*Frobnicate"),
            (
                "adder",
                "nothing-to-quantize",
                r"no operator that int8 quantization covers outside `leave` \(it has: Add\)",
            ),
        ],
    )
    def test_strange_model_is_refused_with_its_reason(
        self, tmp_path: Path, models: ModuleType, model: Any, code: str, said: str
    ) -> None:
        if model == "truncated":
            model = models.classifier()[:-4000]
        elif isinstance(model, str):
            model = getattr(models, model)()

        with pytest.raises(WorkError, match=said) as caught:
            measure(order(tmp_path, model))

        assert caught.value.code == code

    def test_tensors_outside_the_models_folder_are_not_read(self, tmp_path: Path, models: ModuleType) -> None:
        import onnx
        from onnx import TensorProto

        (tmp_path / "secret.data").write_bytes(bytes(64 * 256 * 4))
        model = onnx.load_from_string(models.classifier())
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../secret.data"

        with pytest.raises(WorkError, match="keeps tensors outside its folder") as caught:
            measure(order(tmp_path, model.SerializeToString()))

        assert caught.value.code == "not-onnx"
