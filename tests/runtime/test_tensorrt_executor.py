"""The TensorRT executor around the library's own execution: batches, profiles, results, refusals."""

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tensorrt_double import (
    PACKED,
    PADDED,
    Context,
    Engine,
    HostMemory,
    answer,
    bundle_manifest,
    executor,
    needs_rtx,
    record,
    rows,
)

from bei.errors import EngineError
from bei.runtime.executors.tensorrt import TensorRtExecutor


@needs_rtx
def test_the_stand_ins_offer_only_what_the_library_does() -> None:
    import tensorrt_rtx as trt

    public = {name for name in vars(Context) if not name.startswith("_")} - {"memory"}
    assert public <= set(dir(trt.IExecutionContext))
    assert {name for name in vars(Engine) if not name.startswith("_")} <= set(dir(trt.ICudaEngine))


def test_padded_rows(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    for batch in (rows(3, 8, 1), rows(2), rows(5, 6, 7, 8)):
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert memory.active == 3
    said = {"device": "NVIDIA L4", "buffers": memory.size(), "contexts": 2, "cuda_graphs": "0"}
    assert run.describe() == said


def test_packed_rows(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path, PACKED)
    for batch in (rows(3, 8, 1), rows(2), rows(5, 6, 7, 8)):
        np.testing.assert_array_equal(run.run(batch), answer(batch))


def test_results_outlive_the_next_call(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path)
    first, second = rows(3, 8), rows(4, 2, 1)
    kept = run.run(first)
    run.run(second)
    np.testing.assert_array_equal(kept, answer(first))


def test_each_profile_has_a_context_and_all_share_one_workspace(tmp_path: Path) -> None:
    run, engine, memory = executor(tmp_path)
    for lengths in ((8, 8, 8), (20, 2), (5, 5), (1, 1, 1)):
        batch = rows(*lengths)
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert [context.profiles for context in engine._contexts] == [[0], [1]]
    assert {context.workspace[0] for context in engine._contexts} == {
        int(memory.buffers["workspace"].ctypes.data)
    }
    assert memory.buffers["workspace"].size == 16 * 2 * 20  # the largest batch that came


def test_a_batch_beyond_the_plan_is_refused(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path)
    for lengths in ((1,) * 5, (33,), (9, 9, 9)):
        with pytest.raises(EngineError, match=r"batch input_ids \[\d+, \d+\].* is larger than the plan"):
            run.run(rows(*lengths))


def test_a_failure_of_the_library_is_an_error(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path, works=False)
    with pytest.raises(EngineError, match=r"tensorrt-rtx-sm80.*the library could not run the batch"):
        run.run(rows(3))


def test_inputs_the_plan_wants_and_the_manifest_does_not_name(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path, ("attention_mask",))
    with pytest.raises(EngineError, match="wants inputs that were not given: input_ids"):
        run.run(rows(3))


def test_one_result_a_token(tmp_path: Path) -> None:
    manifest = bundle_manifest(tmp_path, task="token-classify", labels=("a", "b", "c"))
    fake = Engine(PADDED, "logits", per_token=True)
    made = TensorRtExecutor(fake, None, HostMemory(), record(inputs=PADDED), manifest, {}, None)
    batch = rows(3, 7)
    for one, out in zip(batch, made.run(batch), strict=True):
        np.testing.assert_array_equal(out, np.stack([one.ids, one.types, np.ones_like(one.ids)], axis=-1))


def test_a_closed_engine_does_not_run(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    run.run(rows(3))
    run.close()
    run.close()
    assert memory.size() == 0
    with pytest.raises(EngineError, match="the engine is closed"):
        run.run(rows(3))
