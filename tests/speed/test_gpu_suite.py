"""The speed suite as a user runs it, on a tiny model and the CPU: whole, interrupted, out of time."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "tests" / "profiling"))

from tiny_size import TINY  # noqa: E402

import gpu_suite  # noqa: E402
from prune2drive.profiling import flops, shapes  # noqa: E402
from prune2drive.profiling.suite import load_suite  # noqa: E402
from speed import break_even, ceilings, kernel, memory, pictures, predictions, prefill, rivals, steps  # noqa: E402
from speed.bench import Bench  # noqa: E402
from speed.setting import Setting  # noqa: E402
from speed.sheet import Sheet, Skip  # noqa: E402

TOKENS = 6 * 37 + 64


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def run(out, *more):
    return gpu_suite.main(["--device", "cpu", "--quick", "--shapes", "tiny", "--out", str(out), *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "tiny", TINY)
        status = run(out)
    return status, load_suite(out / "suite.json"), (out / "index.html").read_text()


def test_every_section_is_there(whole):
    status, suite, _ = whole
    assert suite["failures"] == []
    assert status == 0
    sections = {name.partition("/")[0] for name in suite["cells"]}
    assert sections == set(gpu_suite.SECTIONS) - {"ceilings"}
    assert suite["ceilings"]["matmul_tflops"] > 0
    assert suite["ceilings"]["copy_gb_per_s"] > 0
    assert suite["hardware"]["device"] == "cpu"


def test_rows_hold_what_the_model_does(whole):
    cells = whole[1]["cells"]
    text = shapes.build_config("tiny").text_config
    kept = 6 * (4 + 1) + 64  # 3.6 tokens of 36 round up to 4, and the newline
    for mode in ("eager", "captured"):
        full, cut = (cells[f"prefill/tiny-b1-r{r}-{mode}"] for r in ("1", "0.1"))
        assert (full["tokens"], cut["tokens"]) == (TOKENS, kept)
        for row in (full, cut):
            lengths = [row["tokens"]] * 3
            assert row["kv_bytes"] == flops.kv_cache_bytes(text, lengths, dtype=torch.float32)
            expected = flops.language_flops(text, lengths, causal=True) + flops.head_flops(text)
            assert row["flops_prefill"] == expected
            assert row["decode_ms_per_token"]["median"] > 0
        assert full["prefill_ratio"] == full["flops_ratio"] == 1
        medians = full["prefill_ms"]["median"], cut["prefill_ms"]["median"]
        assert cut["prefill_ratio"] == pytest.approx(medians[0] / medians[1])
        assert cut["share_of_limit"] == pytest.approx(cut["prefill_ratio"] / cut["flops_ratio"])
    eager = cells["prefill/tiny-b1-r1-eager"]
    assert eager["projector_ms"]["median"] > 0
    assert eager["stages"] is None
    captured = cells["prefill/tiny-b1-r0.1-captured"]
    assert captured["stages"]["prefill"] == "plain"
    ratio = eager["ttft_ms"]["median"] / captured["ttft_ms"]["median"]
    assert captured["ttft_ratio_to_eager"] == pytest.approx(ratio)


def test_steps_follow_one_another(whole):
    ladder = sorted(
        (row for name, row in whole[1]["cells"].items() if name.startswith("steps/")),
        key=lambda row: row["number"],
    )
    assert [row["id"] for row in ladder] == [
        "stock", "tower-sdpa", "tower-batch", "pruned", "kernel", "planned", "device-pixels", "pinned",
    ]  # fmt: skip
    for before, after in pairwise(ladder):
        expected = before["ttft_ms"]["median"] / after["ttft_ms"]["median"]
        assert after["gain"] == pytest.approx(expected)
    assert set(ladder[-1]["parts_ms"]) == {"upload", "preprocess", "vision", "select", "prefill"}


def test_rivals_are_compared_at_equal_tokens(whole):
    suite = whole[1]
    rows = {name: row for name, row in suite["cells"].items() if name.startswith("rivals/")}
    skipped = {e["cell"] for e in suite["skipped"] if e["cell"].startswith("rivals/")}
    assert {*rows, *skipped} == {f"rivals/{name}" for name in [*rivals.names(), "unpruned"]}
    # 10% of 216 on average; what else the layers see are 70 words and newlines, or fewer newlines.
    pruned = [row["layer_averaged_tokens"] for name, row in rows.items() if name != "rivals/unpruned"]
    assert len(pruned) >= 10
    assert max(pruned) <= 0.1 * 216 + 70
    assert min(pruned) >= 64 + 6


def test_the_page_tells_the_hardware(whole):
    _, suite, page = whole
    assert suite["hardware"]["cpu"] in page
    assert "tiny" in page


def test_predictions_are_for_another_device(whole):
    told = whole[1]["predictions"]
    assert len({p["id"] for p in told}) == len(told) == len(predictions.PREDICTIONS)
    assert all(p["outcome"] is None and p["verdict"] is None for p in told)
    assert all(p["predicted"] and p["why"] for p in told)


def test_a_second_run_measures_nothing_again(whole, tmp_path, monkeypatch):
    (tmp_path / "suite.json").write_text(json.dumps(whole[1]))
    before = json.loads((tmp_path / "suite.json").read_text())["cells"]

    def again(*arguments):
        raise AssertionError("measured again")

    for module in (kernel, steps, rivals, break_even, prefill, memory, pictures):
        monkeypatch.setattr(module, "measure", again)
    assert run(tmp_path) == 0
    assert json.loads((tmp_path / "suite.json").read_text())["cells"] == before


def test_goes_on_after_a_failure(tmp_path, monkeypatch):
    original, calls = memory.measure, []

    def failing(bench, shape, samples, retention):
        calls.append((samples, retention))
        if samples == 2 and len(calls) < 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return original(bench, shape, samples, retention)

    monkeypatch.setattr(memory, "measure", failing)
    assert run(tmp_path, "--sections", "memory") == 1
    suite = load_suite(tmp_path / "suite.json")
    assert {e["cell"] for e in suite["failures"]} == {"memory/tiny-n2-unpruned", "memory/tiny-n2-r0.1"}
    assert "9 GiB" in suite["failures"][0]["reason"]
    assert "memory/tiny-n1-unpruned" in suite["cells"]
    assert run(tmp_path, "--sections", "memory") == 0
    suite = load_suite(tmp_path / "suite.json")
    assert suite["failures"] == []
    assert "memory/tiny-n2-r0.1" in suite["cells"]
    assert calls.count((1, 1.0)) == 1


def test_not_enough_memory_is_an_answer(tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "_called", full)
    assert run(tmp_path, "--sections", "memory") == 0
    row = load_suite(tmp_path / "suite.json")["cells"]["memory/tiny-n2-unpruned"]
    assert row["ok"] is False
    assert "out of memory" in row["reason"]
    assert row["peak_bytes"] is None


def test_a_kill_loses_one_job_only(tmp_path, monkeypatch):
    original = memory.measure

    def killed(bench, shape, samples, retention):
        if (samples, retention) == (1, 0.1):
            raise KeyboardInterrupt
        return original(bench, shape, samples, retention)

    monkeypatch.setattr(memory, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--sections", "memory")
    assert list(load_suite(tmp_path / "suite.json")["cells"]) == ["memory/tiny-n1-unpruned"]
    monkeypatch.setattr(memory, "measure", original)
    assert run(tmp_path, "--sections", "memory") == 0
    assert len(load_suite(tmp_path / "suite.json")["cells"]) == 4


def test_out_of_time(tmp_path, capsys):
    assert run(tmp_path, "--budget", "0") == 0
    suite = load_suite(tmp_path / "suite.json")
    assert suite["cells"] == {}
    assert {e["reason"] for e in suite["skipped"]} == {"out of time"}
    assert "run the same command again" in capsys.readouterr().out


def test_a_cell_is_told_of_once(tmp_path):
    """What was skipped or failed within a job, when the job is tried again."""
    sheet = Sheet(tmp_path / "suite.json", Setting("cpu", "float32", shapes=("tiny",)), say=lambda line: None)
    sheet.fail("rivals/dart", RuntimeError("no memory"))
    sheet.skip("rivals/dart", "too few layers")
    sheet.skip("rivals/dart", "too few layers")
    assert sheet.data["failures"] == []
    assert sheet.data["skipped"] == [{"cell": "rivals/dart", "reason": "too few layers"}]


def test_other_settings_are_refused(tmp_path, capsys):
    assert run(tmp_path, "--budget", "0") == 0
    assert run(tmp_path, "--budget", "0", "--repeat", "3") == 2
    error = capsys.readouterr().err
    assert "other settings (repeat)" in error
    assert "--fresh" in error
    assert run(tmp_path, "--budget", "0", "--repeat", "3", "--fresh") == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shapes", "drivem"], "Did you mean 'drivemm'"),
        (["--dtype", "auto"], "fp32"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_input(tmp_path, capsys, more, message):
    assert run(tmp_path, *more) == 2
    assert message in capsys.readouterr().err


def test_a_chain_of_reads_meets_every_place():
    ring = ceilings.ring(64, torch.device("cpu"))
    seen, at = [], 0
    for _ in range(64):
        seen.append(at)
        at = int(ring[at])
    assert at == 0
    assert sorted(seen) == list(range(64))


def test_floor_by_hand():
    found = kernel.floor_ms(
        (6, 729, 4096, 72, "bfloat16"),
        {"matmul_tflops": 600.0, "copy_gb_per_s": 3000.0, "l2_step_us": 0.2},
    )
    # 6 * 729 * 730 / 2 products of 2 * 4096 FLOPs are 13.08 GFLOP, 21.8 us at 600 TFLOP/s; the features are
    # 35.8 MB, 11.9 us. The matrix has 3.19 million numbers: 25.5 MB once written and once read.
    assert found["gram"] == pytest.approx(0.0218, rel=2e-3)
    assert found["distances"] == pytest.approx(0.0085, rel=2e-3)
    assert found["picks"] == pytest.approx(0.0144)
    assert found["total"] == pytest.approx(sum(found[k] for k in ("gram", "distances", "picks")))
    assert kernel.floor_ms((1, 8, 8, 2, "float32"), {}) is None


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.1, 0.2), (0.5, 0.6), (0.9, 1.1)], 0.82),
        ([(0.9, 1.1), (0.1, 0.2), (0.5, 0.6)], 0.82),
        ([(0.1, 0.2), (0.5, 1.0), (0.9, 1.1)], 0.5),
        ([(0.1, 0.2), (0.9, 0.95)], None),
        ([(0.1, 1.2), (0.9, 0.95)], 0.0),
    ],
)
def test_where_lines_cross(points, expected):
    found = break_even.crossing(points)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("limit", "guess"), [(60, 60), (60, 50), (60, 75), (3, 20), (200, 190)])
def test_widest(limit, guess):
    batch, tried = memory.widest(lambda n: n <= limit, guess, tries=20)
    assert batch == limit
    assert all(ok == (int(n) <= limit) for n, ok in tried.items())


def test_widest_with_nothing_that_runs():
    assert memory.widest(lambda n: False, 3) == (None, {"1": False, "2": False, "3": False})


def test_largest_batch_begins_where_memory_says(monkeypatch):
    """A GPU with room for 57 samples, of which 60 seem to fit."""
    gib = 2**30
    cells = {
        f"memory/tiny-n{n}-unpruned": {
            "shape": "tiny", "samples": n, "retention": 1.0, "growth_bytes": int((0.5 + n) * gib)
        }
        for n in (1, 4, 16)
    }  # fmt: skip
    bench = SimpleNamespace(setting=Setting("cuda", "bfloat16"), model=lambda shape: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(60.5 * gib), 80 * gib))
    monkeypatch.setattr(memory, "_runs", lambda bench, shape, n, retention: n <= 57)
    row = memory.largest(bench, "tiny", 1.0, cells)["memory/tiny-largest-unpruned"]
    assert row["largest_batch"] in (56, 57)
    assert row["tried"]["60"] is False
    with pytest.raises(Skip, match="two batch sizes"):
        memory.largest(bench, "tiny", 0.1, cells)


def test_jobs_of_a_gpu():
    """Names are unique, the most telling come first, and every shape has every batch."""
    setting = Setting("cuda", "bfloat16")
    sheet = SimpleNamespace(data={"ceilings": {}}, cells={})
    listed = [name for _, name, _ in gpu_suite.jobs(setting, Bench(setting), sheet)]
    assert len(set(listed)) == len(listed)
    assert listed[0] == "kernel/6x729x4096-k72-bfloat16"
    for shape in setting.shapes:
        assert {f"prefill/{shape}-b1-eager", f"prefill/{shape}-b1-captured"} <= {*listed}
        assert f"prefill/{shape}-b8-captured" in listed
        assert f"break_even/{shape}-b1-6cam-captured" in listed
    assert listed.index("prefill/drivemm-b1-captured") < listed.index("steps/drivemm")
    assert "break_even/llava-onevision-0.5b-b1-6cam-eager" in listed
    assert "break_even/internvl2.5-8b-b1-2cam-eager" in listed
    assert listed[-1].startswith("prefill/qwen2.5-vl-7b-b8")
    # Whatever a prediction is about is measured.
    keys = {key.rpartition("/")[0] or key for key in listed}
    assert {p.section for p in predictions.PREDICTIONS} <= keys


def test_a_batch_that_does_not_fit_is_told(tmp_path, monkeypatch):
    """Larger batches are measured one variant after the other, so the unpruned one alone is lost."""
    original = prefill.make

    def full(mode, bench, shape, inputs, retention, cameras, new_tokens):
        if len(inputs["input_ids"]) == 2 and retention == 1.0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(mode, bench, shape, inputs, retention, cameras, new_tokens)

    monkeypatch.setattr(prefill, "make", full)
    assert run(tmp_path, "--sections", "prefill", "--batches", "1", "2") == 0
    suite = load_suite(tmp_path / "suite.json")
    one, two = (suite["cells"][f"prefill/tiny-b{batch}-r0.1-captured"] for batch in (1, 2))
    assert (one["turns"], two["turns"]) == (True, False)
    assert list(two["lost"]) == ["1"]
    assert two["prefill_ratio"] is None
    assert two["flops_prefill"] == 2 * one["flops_prefill"]
    assert two["kv_bytes"] == 2 * one["kv_bytes"]
    assert "prefill/tiny-b2-r1-captured" not in suite["cells"]


def test_outcomes_and_verdicts():
    name = "kernel/6x729x4096-k72-bfloat16"
    time = {"median": 0.09, "lowest": 0.08, "highest": 0.1, "runs": 3}
    cells = {name: {"backend": "triton", "ms": {"kernel": time}, "parts_ms": {"gram": time, "picks": time}}}
    told = {p["id"]: p for p in predictions.told(cells, "NVIDIA H100 80GB HBM3")}
    assert (told["kernel-72"]["outcome"], told["kernel-72"]["verdict"]) == (0.09, "missed")
    assert told["reach-72"]["verdict"] == "met"
    assert told["kernel-364"]["verdict"] is None
    assert predictions.told(cells, "NVIDIA L4")[0]["outcome"] is None
    cells["break_even/drivemm-b1-6cam-captured"] = {"points": [[0.75, 0.8]]}
    assert {p["id"]: p for p in predictions.told(cells, "NVIDIA H100")}["pays-drivemm"]["outcome"] is None
    cells["break_even/drivemm-b1-6cam-captured"] = {"points": [[0.95, 0.97], [0.75, 0.8]]}
    told = {p["id"]: p for p in predictions.told(cells, "NVIDIA H100")}["pays-drivemm"]
    assert (told["outcome"], told["verdict"]) == (0.97, "missed")
    cells[name]["backend"] = "torch"
    assert predictions.told(cells, "NVIDIA H100")[0]["outcome"] is None


def test_cameras_one_at_a_time_give_the_same_features():
    bench = Bench(Setting("cpu", "float32", shapes=("tiny",), quick=True, frame=(90, 160)))
    way = steps.Way(bench, "tiny")
    way.encode()
    together = way.features.pooler_output
    calls = []
    tower = way.model.base_model.vision_tower
    hook = getattr(tower, "vision_model", tower).embeddings.register_forward_pre_hook
    handle = hook(lambda module, inputs: calls.append(1))
    with torch.no_grad(), way.tower("eager", True):
        way.encode()
    handle.remove()
    assert len(calls) == 6
    for a, b in zip(together, way.features.pooler_output, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(way.model.base_model.vision_tower)
