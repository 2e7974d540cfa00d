"""A captured call is the pruned call, for every family, with and without graphs."""

from __future__ import annotations

import copy
import itertools
import sys
import weakref

import pytest
import torch
from contract_helpers import RETENTION, families, prompt, shared_model, some
from meta_audit import META, on_meta, why_not

import prune2drive as p2d
from families_table import BY_NAME
from prune2drive.engine.decoding import FixedSteps
from prune2drive.engine.graphs import Stage
from prune2drive.functional import checks, counts

NEW = 5


def pruned(model, **settings):
    return p2d.prune(model, settings.pop("method", "tfps"), settings.pop("retention", RETENTION), **settings)


def other_pixels(inputs):
    """The same shapes, other pictures."""
    out = dict(inputs)
    out["pixel_values"] = inputs["pixel_values"].flip(-1).contiguous()
    return out


def caches(cache):
    return [t for layer in cache.layers for t in (layer.keys, layer.values)]


def same(out, expected):
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=0)
    for got, want in zip(caches(out.past_key_values), caches(expected.past_key_values), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@families
@pytest.mark.parametrize("batch", ["one", "left", "right"])
def test_equals_the_pruned_call(case, batch):
    """Bit for bit: the same operations on the same numbers, also on pictures that were not captured."""
    model, inputs = shared_model(case), prompt(case, batch)
    handle = pruned(model)
    captured = p2d.capture(handle, inputs)
    for call in (inputs, other_pixels(inputs)):
        out = captured(pixel_values=call["pixel_values"])
        with handle:
            expected = model(**call, use_cache=True, logits_to_keep=1)
        same(out, expected)
        assert captured.record.samples == handle.record.samples
        assert captured.record.sequence == handle.record.sequence


@families
def test_a_bare_model_is_captured_unpruned(case):
    model, inputs = shared_model(case), prompt(case, "left")
    captured = p2d.capture(model, inputs)
    out = captured(**other_pixels(inputs))
    same(out, model(**other_pixels(inputs), use_cache=True, logits_to_keep=1))
    with pytest.raises(p2d.PruneError, match="nothing is pruned"):
        _ = captured.record


@families
@pytest.mark.parametrize("positions", ["keep", "reindex"])
def test_generates_what_the_pruned_model_generates(case, positions):
    model, inputs = shared_model(case), prompt(case, "left")
    handle = pruned(model, positions=positions)
    answer = p2d.capture(handle, inputs).generate(NEW, eos_token_id=-1)
    with handle:
        whole = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert torch.equal(answer, whole[:, inputs["input_ids"].shape[1] :])


@families
def test_what_a_graph_can_record(case, monkeypatch):
    """Stages that neither read the device nor upload to it; the others run plain on CUDA, by name."""
    model, inputs = shared_model(case), prompt(case, "one")
    captured = p2d.capture(pruned(model), inputs)
    twin = on_meta(captured.frozen)
    # While a graph is recorded no values are checked and no counts uploaded.
    for module in (checks, counts):
        monkeypatch.setattr(module, "capturing", lambda device: device == META)
    reasons = {
        "encode": why_not(twin.encode, tuple(t.to(META) for t in captured._pixels)),
        "choose": why_not(twin.choose, tuple(t.to(META) for t in (captured._ids, *captured._encoded))),
        "prefill": why_not(twin.prefill, tuple(t.to(META) for t in captured._cut)),
    }
    assert {name for name, reason in reasons.items() if reason} == PLAIN.get(case.name, set()), reasons


@families
def test_a_decode_step_can_be_recorded(case):
    model, inputs = shared_model(case, wide=False), prompt(case, "one")
    captured = p2d.capture(pruned(model), inputs)
    steps = FixedSteps(on_meta(captured.frozen), NEW, record=False, pool=None)
    if steps.why_not is None:
        read = tuple(t.to(META) for t in captured._read)
        token = position = torch.zeros(1, 1, dtype=torch.long, device=META)
        steps.prepare(read, captured._cut[1].to(META), token, position)
        assert why_not(steps._step, (token, position, steps.mask)) is None


PLAIN = {
    "qwen3_vl": {"prefill"},  # deepstack features are added at places found by a mask
    "idefics3": {"encode"},  # empty pictures are looked for
    "smolvlm": {"encode"},
    "mistral3": {"encode"},  # the tower crops picture by picture, by sizes on the device
    "ovis2": {"prefill"},  # indicator tokens are looked for one by one
}


# -- graphs, played by functions ------------------------------------------------------------------


class Played:
    """Stands for a CUDA graph: a replay reads the recorded buffers and writes into the recorded outputs."""

    def __init__(self, stage, inputs):
        self.stage, self.inputs = stage, inputs
        self.outputs = tuple(t.clone() for t in stage.function(*inputs))

    def replay(self):
        for buffer, value in zip(self.outputs, self.stage.function(*self.inputs), strict=True):
            buffer.copy_(value)


@pytest.fixture
def played(monkeypatch):
    def record(self, inputs, pool):
        self._graph = Played(self, inputs)
        self.pool_used = pool.handle
        self._inputs, self._outputs, self.how = inputs, self._graph.outputs, "graph"

    monkeypatch.setattr(Stage, "_record", record)
    monkeypatch.setattr(sys.modules[p2d.Captured.__module__], "_recordable", lambda model, device: True)
    handles = itertools.count()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the caller's")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@families
def test_replays_serve_other_pictures_and_words(case, played):
    model, inputs = shared_model(case), prompt(case, "one")
    handle = pruned(model)
    captured = p2d.capture(handle, inputs)
    assert captured.stages == {
        "encode": "graph", "choose": "graph", "prefill": "graph", "decode": "plain"
    }  # fmt: skip
    ids = inputs["input_ids"].clone()
    ids[:, -1] = ids[:, -2]
    call = {**other_pixels(inputs), "input_ids": ids}
    first = captured()
    second = captured(**{name: call[name] for name in ("pixel_values", "input_ids")})
    with handle:
        expected = [model(**each, use_cache=True, logits_to_keep=1) for each in (inputs, call)]
    assert not torch.equal(expected[0].logits, expected[1].logits)
    # The first result is checked last: a replay must not have reached into what was handed out.
    same(second, expected[1])
    same(first, expected[0])


@some("llava_onevision", "qwen2_5_vl")
def test_answers_after_another_replay(case, played):
    """A cache handed out goes on being extended while the graphs run for the next frame."""
    model, inputs = shared_model(case), prompt(case, "one")
    captured = p2d.capture(pruned(model), inputs)
    plain = p2d.capture(pruned(model), inputs, graphs=False)
    assert set(plain.stages.values()) == {"plain"}
    for call in (inputs, other_pixels(inputs), inputs):
        pixels = call["pixel_values"]
        expected = plain.generate(NEW, eos_token_id=-1, pixel_values=pixels)
        assert torch.equal(captured.generate(NEW, eos_token_id=-1, pixel_values=pixels), expected)


@families
@pytest.mark.parametrize("batch", ["one", "left"])
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "played"])
def test_decodes_on_a_cache_of_fixed_size(case, batch, graphs, request):
    """Answers are those of the growing cache, frame after frame, also when one is longer than the room."""
    if graphs:
        request.getfixturevalue("played")
    model, inputs = shared_model(case, wide=False), prompt(case, batch)
    captured = p2d.capture(pruned(model), inputs, new_tokens=NEW)
    growing = p2d.capture(pruned(model), inputs, graphs=False)
    if captured.stages["decode"].startswith("plain: layers keep"):
        assert case.name in ("gemma3", "aya_vision")
    else:
        assert captured.stages["decode"] == ("graph" if graphs else "plain")
    for call, count in ((inputs, NEW), (other_pixels(inputs), 2), (inputs, NEW + 3), (inputs, 1)):
        pixels = call["pixel_values"]
        answer = captured.generate(count, eos_token_id=-1, pixel_values=pixels)
        assert torch.equal(answer, growing.generate(count, eos_token_id=-1, pixel_values=pixels))
        assert answer.shape == (len(inputs["input_ids"]), count)


def test_a_decode_step_that_cannot_be_recorded_is_told_too(monkeypatch, played):
    case = BY_NAME["llava"]
    handle, inputs = pruned(shared_model(case)), prompt(case, "one")
    record = Stage._record

    def fail(self, tensors, pool):
        if self.name == "decode":
            raise RuntimeError("not permitted")
        record(self, tensors, pool)

    monkeypatch.setattr(Stage, "_record", fail)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    captured = p2d.capture(handle, inputs, new_tokens=NEW)
    assert captured.stages["decode"] == "plain: RuntimeError: not permitted"
    with pytest.raises(p2d.PruneError, match="decode cannot be recorded"):
        p2d.capture(handle, inputs, graphs=True, new_tokens=NEW)


def test_a_failed_recording_falls_back_and_says_why(monkeypatch, played):
    case = BY_NAME["llava"]
    model, inputs = shared_model(case), prompt(case, "one")
    record = Stage._record

    streams, alive = [], []

    def fail(self, tensors, pool):
        if self.name == "encode":
            held = torch.zeros(3)  # what a call had made when it failed
            alive.append(weakref.ref(held))
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        record(self, tensors, pool)

    monkeypatch.setattr(Stage, "_record", fail)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    handle = pruned(model)
    captured = p2d.capture(handle, inputs)
    assert captured.stages["encode"] == "plain: RuntimeError: operation not permitted"
    assert captured.stages["prefill"] == "graph"
    assert streams == ["the caller's"]
    assert alive[0]() is None
    # What comes later is recorded into memory that the failed recording has not touched.
    assert {captured._stages[name].pool_used for name in ("choose", "prefill")} == {1}
    call = other_pixels(inputs)
    with handle:
        expected = model(**call, use_cache=True, logits_to_keep=1)
    same(captured(pixel_values=call["pixel_values"]), expected)
    with pytest.raises(p2d.PruneError, match="encode cannot be recorded: plain: RuntimeError"):
        p2d.capture(handle, inputs, graphs=True)


# -- decode, contexts -----------------------------------------------------------------------------


@families
def test_the_cache_goes_on_inside_the_context(case):
    """Without positions given, the wrapped model places the next token as after its own prefill."""
    model, inputs = shared_model(case), prompt(case, "one")
    handle = pruned(model)
    captured = p2d.capture(handle, inputs)
    with handle:
        outs = [captured(), model(**inputs, use_cache=True, logits_to_keep=1)]
        steps = []
        for out in outs:
            token = out.logits[:, -1:].argmax(-1)
            step = model(input_ids=token, past_key_values=out.past_key_values)
            steps.append(step.logits)
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0)


def test_stages_one_by_one_are_the_call():
    case = BY_NAME["internvl"]
    captured = p2d.capture(pruned(shared_model(case)), prompt(case, "one"))
    expected = captured()
    captured.encode()
    captured.choose()
    captured.prefill()
    torch.testing.assert_close(captured._read[0], expected.logits, rtol=0, atol=0)
    assert captured.kv_bytes == sum(t.nbytes for t in caches(expected.past_key_values))
    assert captured.length == expected.past_key_values.get_seq_length()


def test_rows_that_ended_repeat_the_end():
    case = BY_NAME["llava"]
    captured = p2d.capture(pruned(shared_model(case)), prompt(case, "left"))
    free = captured.generate(NEW, eos_token_id=-1)
    end = int(free[0, 1])
    answer = captured.generate(NEW, eos_token_id=end)
    row = free[0].tolist()
    stop = row.index(end)
    assert answer[0, : stop + 1].tolist() == row[: stop + 1]
    assert set(answer[0, stop:].tolist()) == {end}


@pytest.mark.slow
@some("llava_onevision")
def test_compiled(case):
    model, inputs = copy.deepcopy(shared_model(case)), prompt(case, "one")
    handle = pruned(model)
    captured = p2d.capture(handle, inputs, compile=True)
    call = other_pixels(inputs)
    with handle:
        expected = model(**call, logits_to_keep=1)
    torch.testing.assert_close(captured(pixel_values=call["pixel_values"]).logits, expected.logits)


# -- refused --------------------------------------------------------------------------------------


def refused(match, *, method="tfps", inputs=None, model=None, **settings):
    case = BY_NAME["llava"]
    model = model or shared_model(case)
    with pytest.raises(p2d.PruneError, match=match):
        p2d.capture(pruned(model, method=method), inputs or prompt(case, "one"), **settings)


def test_methods_that_work_inside_are_refused():
    refused("choose before the language model", method="fastv")


def test_methods_that_need_more_than_features_are_refused():
    refused("visionzip needs .* besides features", method="visionzip")


def test_graphs_without_cuda_are_refused():
    refused("one CUDA device; input_ids is on cpu", graphs=True)


def test_missing_pictures_are_refused():
    inputs = {k: v for k, v in prompt(BY_NAME["llava"], "one").items() if k != "pixel_values"}
    refused("capture needs pixel_values", inputs=inputs)


def test_a_training_model_is_refused():
    refused("training mode", model=BY_NAME["llava"].model().train())


def test_a_model_pruned_by_another_is_refused():
    model = shared_model(BY_NAME["llava"])
    with pruned(model, method="random"):
        refused("another prune", model=model)


def test_methods_that_split_totals_by_what_they_see_are_refused():
    class Wandering(type(p2d.prune(shared_model(BY_NAME["llava"]), "tfps", 0.5).cutter.selector)):
        allocates = True

        def select(self, tokens, counts):
            moved = list(counts)
            moved[0], moved[1] = moved[0] - 1, moved[1] + 1
            return super().select(tokens, moved)

    refused("splits the total between cameras", method=Wandering())


def test_other_inputs_are_refused_by_name():
    case = BY_NAME["llava_onevision"]
    inputs = prompt(case, "one")
    captured = p2d.capture(pruned(shared_model(case)), inputs)
    with pytest.raises(p2d.PruneError, match=r"pixel_values of shape .* captured with .*capture again"):
        captured(pixel_values=inputs["pixel_values"][:2])
    ids = inputs["input_ids"].roll(1, -1)
    with pytest.raises(p2d.PruneError, match="placeholders elsewhere"):
        captured(input_ids=ids)
    with pytest.raises(p2d.PruneError, match="image_sizes differs"):
        captured(image_sizes=inputs["image_sizes"] + 1)
    with pytest.raises(p2d.PruneError, match="pixels was not among"):
        captured(pixels=inputs["pixel_values"])


def test_right_padded_prompts_have_no_answers():
    case = BY_NAME["llava"]
    captured = p2d.capture(pruned(shared_model(case)), prompt(case, "right"))
    with pytest.raises(p2d.PruneError, match="pad on the left"):
        captured.generate(2)
    with pytest.raises(p2d.PruneError, match="at least 1"):
        captured.generate(0)
