"""Finding, reading and checking the experts of a model file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimaran_experts.engine as engine_module
from expert_store import make_task
from trimaran.config import ExpertsConfig, Precision
from trimaran.errors import KernelError, ModelFileError
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.gguf.dequant import dequantize
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_experts.engine import ShardEngine, build_engine
from trimaran_experts.kernel_packing import kernel_packing
from trimaran_experts.loader import find_experts
from trimaran_experts.loading import LoadingThread
from trimaran_experts.placement import place
from trimaran_experts.progress import Report
from trimaran_experts.self_check import FLOAT_TOLERANCE, check_engine, reference
from trimaran_experts.weights import obtain
from trimaran_kernels import ExpertEngine, ThreadPool, built_isas, usable_cpus


def test_a_shard_sees_its_own_experts(model) -> None:
    with GGUFFile.open(model.path) as file:
        placement = place(ExpertsConfig(experts="5-8"), model.facts.n_experts, 256, usable_cpus(1))
        layers = find_experts(file, model.spec, placement)
        assert [layer.layer for layer in layers] == [1, 2]
        whole = file.raw("blk.2.ffn_down_exps.weight").reshape(model.facts.n_experts, -1)
        for index in range(4):
            np.testing.assert_array_equal(layers[1].down.expert(index), whole[5 + index])
        stored = np.fromfile(model.path, np.uint8)
        gate = layers[0].gate
        np.testing.assert_array_equal(stored[gate.offset : gate.offset + gate.raw.size], gate.raw)


def test_experts_of_another_shape_are_refused(model) -> None:
    wrong = replace(model.spec, moe=replace(model.spec.moe, n_experts=8))
    placement = place(ExpertsConfig(), 8, 256, [0])
    with (
        GGUFFile.open(model.path) as file,
        pytest.raises(
            ModelFileError, match=r"blk.1.ffn_gate_exps.weight.*\[16, 256, 256\], need \[8, 256, 256\]"
        ),
    ):
        find_experts(file, wrong, placement)


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


def built(path: Path, isa: str = "auto", precision: Precision = "int8", **options: str) -> ShardEngine:
    """The engine of a service with these options, from the model's own bytes or a copy."""
    task = make_task(path, kernel_packing(precision, isa), **options)
    weights = obtain(task)
    assert weights is not None
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
    placement = place(task.config, spec.moe.n_experts, spec.moe.intermediate_size, usable_cpus(1))
    exact = precision == "exact"
    return build_engine(spec, placement, task.layers, weights, pool=task.pool, isa=isa, exact=exact)


@pytest.mark.parametrize(
    "kind", [GGMLType.F32, GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.IQ4_XS, GGMLType.IQ2_XXS]
)
@pytest.mark.parametrize(("store", "precision"), [("off", "int8"), ("private", "int8"), ("private", "exact")])
def test_kernels_pass_the_self_check(
    tmp_path: Path, model, kind: GGMLType, store: str, precision: Precision
) -> None:
    def choose(name: str, shape: tuple[int, ...]) -> GGMLType:
        return kind if "_exps" in name else GGMLType.F32

    small = replace(model.spec, moe=replace(model.spec.moe, n_experts=4, n_groups=1, n_groups_used=1))
    path = write_random_model(tmp_path / "m.gguf", mix=choose, tokenizer=False, spec=small)
    assert built(path, precision=precision, experts="1-3", store=store).isa


@pytest.mark.parametrize("columns", ["0-127", "96-255"])
def test_a_slice_of_columns_passes_the_self_check(model, columns: str) -> None:
    assert built(model.path, columns=columns).isa


def test_a_wrong_engine_fails_the_self_check(model) -> None:
    moe = model.spec.moe
    engine = ExpertEngine(
        ThreadPool(usable_cpus(1)), model.spec.hidden_size, moe.intermediate_size, moe.n_experts, moe.top_k
    )
    for layer in model.layers:
        gate, up, down = ((int(matrix.type), matrix.raw) for matrix in layer.matrices)
        engine.add_layer(layer.layer, up, gate, down, 0, moe.n_experts)  # gate and up exchanged
    with pytest.raises(KernelError, match="deviates"):
        check_engine(engine, model.layers, 0, FLOAT_TOLERANCE)


def test_kernels_that_fail_are_replaced_by_the_next_in_the_table(
    model, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = built(model.path).isa
    table = built_isas()
    asked: list[str] = []

    def refuse_all_but_the_last(engine: ExpertEngine, *_rest: object) -> float:
        asked.append(engine.isa)
        if engine.isa != table[-1]:
            raise KernelError("deviates")
        return 0.0

    monkeypatch.setattr(engine_module, "check_engine", refuse_all_but_the_last)
    assert built(model.path).isa == table[-1]
    assert asked == table[table.index(best) :]


def test_no_kernel_that_passes_is_an_error(model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_rest: object) -> float:
        raise KernelError("deviates")

    monkeypatch.setattr(engine_module, "check_engine", refuse)
    with pytest.raises(KernelError, match="deviates"):
        built(model.path)


def test_a_failure_to_load_reaches_the_control_loop() -> None:
    def fail(on_progress, stopped):
        on_progress(Report(0.5, 2.0, 1.0))
        raise ModelFileError("torn")

    thread = LoadingThread(fail)
    deadline = time.monotonic() + 5
    while not thread.finished:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert thread.report == Report(0.5, 2.0, 1.0)
    with pytest.raises(ModelFileError, match="torn"):
        thread.result()
    thread.close()
