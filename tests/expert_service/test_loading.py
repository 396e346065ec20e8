"""Finding, reading and checking the experts of a model file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimaran_experts.engine as engine_module
from trimaran.config import ExpertsConfig
from trimaran.errors import KernelError, ModelFileError
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.gguf.dequant import dequantize
from trimaran.synth import write_random_model
from trimaran_experts.engine import build_engine
from trimaran_experts.loader import find_experts, read_into_memory
from trimaran_experts.loading import LoadingThread
from trimaran_experts.placement import place
from trimaran_experts.self_check import check_engine, reference
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus


def test_a_shard_sees_its_own_experts(model) -> None:
    with GGUFFile.open(model.path) as file:
        placement = place(ExpertsConfig(experts="5-8"), model.facts.n_experts, usable_cpus(1))
        layers = find_experts(file, model.spec, placement)
        assert [layer.layer for layer in layers] == [1, 2]
        for index in range(4):
            own = layers[1].down.expert(index)
            np.testing.assert_array_equal(own, file.raw_expert("blk.2.ffn_down_exps.weight", 5 + index))
        stored = np.fromfile(model.path, np.uint8)
        gate = layers[0].gate
        np.testing.assert_array_equal(stored[gate.offset : gate.offset + gate.raw.size], gate.raw)


def test_experts_of_another_shape_are_refused(model) -> None:
    wrong = replace(model.spec, moe=replace(model.spec.moe, n_experts=8))
    placement = place(ExpertsConfig(), 8, [0])
    with (
        GGUFFile.open(model.path) as file,
        pytest.raises(
            ModelFileError, match=r"blk.1.ffn_gate_exps.weight.*\[16, 256, 256\], need \[8, 256, 256\]"
        ),
    ):
        find_experts(file, wrong, placement)


def test_reading_reports_progress_to_the_end_and_can_be_stopped(model) -> None:
    progress: list[float] = []
    read_into_memory(model.layers, progress.append, lambda: False)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert len(progress) == 6
    progress.clear()
    read_into_memory(model.layers, progress.append, lambda: len(progress) == 2)
    assert len(progress) == 2


def test_the_reference_is_the_formula(model) -> None:
    x, ids, weights = model.batch(2)
    layer = model.layers[0]
    want = np.zeros((2, model.spec.hidden_size))
    for token in range(2):
        for place_, expert in enumerate(ids[token]):
            gate, up, down = (
                dequantize(m.type, m.expert(expert), m.shape).astype(np.float64) for m in layer.matrices
            )
            h = gate @ x[token]
            want[token] += weights[token, place_] * (down @ (h / (1 + np.exp(-h)) * (up @ x[token])))
    np.testing.assert_allclose(reference(layer, x, ids, weights), want, rtol=1e-9)


@pytest.mark.parametrize(
    "kind", [GGMLType.F32, GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.IQ4_XS, GGMLType.IQ2_XXS]
)
def test_kernels_pass_the_self_check(tmp_path: Path, model, kind: GGMLType) -> None:
    def choose(name: str, shape: tuple[int, ...]) -> GGMLType:
        return kind if "_exps" in name else GGMLType.F32

    small = replace(model.spec, moe=replace(model.spec.moe, n_experts=4, n_groups=1, n_groups_used=1))
    with GGUFFile.open(
        write_random_model(tmp_path / "m.gguf", mix=choose, tokenizer=False, spec=small)
    ) as file:
        placement = place(ExpertsConfig(experts="1-3"), 4, usable_cpus(1))
        assert build_engine(small, placement, find_experts(file, small, placement), "auto").isa


def test_a_wrong_engine_fails_the_self_check(model) -> None:
    moe = model.spec.moe
    engine = ExpertEngine(
        ThreadPool(usable_cpus(1)), model.spec.hidden_size, moe.intermediate_size, moe.n_experts, moe.top_k
    )
    for layer in model.layers:
        gate, up, down = ((int(matrix.type), matrix.raw) for matrix in layer.matrices)
        engine.add_layer(layer.layer, up, gate, down, 0, moe.n_experts)  # gate and up exchanged
    with pytest.raises(KernelError, match="deviates"):
        check_engine(engine, model.layers, 0)


def test_a_kernel_that_fails_is_replaced_by_the_generic_one(model, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place(ExpertsConfig(), model.facts.n_experts, usable_cpus(1))
    if build_engine(model.spec, placement, model.layers, "auto").isa == "generic":
        pytest.skip("this CPU has only the generic kernels")

    def refuse_others(engine: ExpertEngine, *rest: object) -> float:
        if engine.isa != "generic":
            raise KernelError("deviates")
        return 0.0

    monkeypatch.setattr(engine_module, "check_engine", refuse_others)
    assert build_engine(model.spec, placement, model.layers, "auto").isa == "generic"


def test_a_failure_to_load_reaches_the_control_loop() -> None:
    def fail(on_progress, stopped):
        on_progress(0.5)
        raise ModelFileError("torn")

    thread = LoadingThread(fail)
    deadline = time.monotonic() + 5
    while not thread.finished:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert thread.progress == 0.5
    with pytest.raises(ModelFileError, match="torn"):
        thread.result()
    thread.close()
