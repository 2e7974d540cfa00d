"""The training command: what it writes, and that an interrupted run ends where an unbroken one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from prune2drive.loading import load_model
from prune2drive.prompts import build_inputs
from prune2drive.rig import NUSCENES
from prune2drive.world import train
from prune2drive.world.model import build_model, build_processor
from prune2drive.world.render import SIDE
from prune2drive.world.train import Pupil, Stage, export, main, parser

CPU = torch.device("cpu")


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch, small_model):
    monkeypatch.setattr(train, "build_model", small_model)


def options(out, see=2, answer=4, **more):
    """A run that ends after so many steps, however long they take."""
    given = {"see-steps": see, "answer-steps": answer, "see-minutes": 1e6, "answer-minutes": 1e6}
    given |= {"scenes": 1, "workers": 0, "device": "cpu", "out": out, **more}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out, name):
    return torch.load(out / f"{name}.pt", weights_only=True)


def equal(a, b):
    """Nested states without the seconds."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, small_model):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_model", small_model)
        assert main(options(out)) == 0
    return out


def test_a_run_writes_log_checkpoints_and_model(unbroken):
    assert {path.name for path in unbroken.iterdir()} == {"see.pt", "answer.pt", "log.jsonl", "model"}
    log = lines(unbroken)
    # One line per stage and grouping, short as they are: half of answering shows three cameras at a time.
    assert [(line["stage"], line["step"], line["rows_per_scene"]) for line in log] == [
        ("see", 2, 1),
        ("answer", 2, 2),
        ("answer", 4, 1),
    ]
    assert all(1 < line["patch"] < 40 for line in log) and log[0].keys() >= {"seconds", "kind"}
    assert all(0 <= line["right"] <= 1 and 1 < line["answer"] < 10 for line in log[1:])
    for name, steps in (("see", 2), ("answer", 4)):
        saved = weights(unbroken, name)
        assert (saved["step"], saved["done"]) == (steps, True) and saved["seconds"] > 0


def test_seeing_leaves_the_language_model_alone(unbroken, small_model):
    fresh = small_model(0).state_dict()
    seen, answered = (weights(unbroken, name)["pupil"]["model"] for name in ("see", "answer"))
    for name, weight in fresh.items():
        moved = not torch.equal(weight, seen[name])
        assert moved <= ("language_model" not in name and "lm_head" not in name), name
        if name.endswith("proj.weight") and ".layers." in name:
            assert moved == ("vision_tower" in name)
            assert not torch.equal(seen[name], answered[name]), name


def test_the_model_loads_and_answers(unbroken):
    model, processor = load_model(unbroken / "model", device="cpu")
    assert type(model).__module__.startswith("transformers.")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "sdpa"
    trained = weights(unbroken, "answer")["pupil"]["model"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name].bfloat16()), name
    grey = {name: Image.new("RGB", (SIDE, SIDE), "grey") for name in NUSCENES.names}
    inputs = build_inputs(processor, model, [grey], "What should we do ?", NUSCENES.names)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


def test_a_finished_run_started_again_changes_nothing(unbroken, capsys):
    before = {name: weights(unbroken, name) for name in ("see", "answer")}
    log = (unbroken / "log.jsonl").read_bytes()
    assert main(options(unbroken)) == 0
    assert capsys.readouterr().out == f"model: {unbroken / 'model'}\n"
    assert (unbroken / "log.jsonl").read_bytes() == log
    for name, state in before.items():
        assert equal(weights(unbroken, name), state)
        assert weights(unbroken, name)["seconds"] == state["seconds"]


def interrupt(monkeypatch, out, at):
    """Run until before the ``at``-th step in all, saving after each."""
    steps = []
    learn = Stage._learn

    def counted(self, batch, share):
        if len(steps) == at:
            raise Stopped
        steps.append((self.name, self.step))
        return learn(self, batch, share)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_SAVE_SECONDS", -1.0)
        patch.setattr(Stage, "_learn", counted)
        with pytest.raises(Stopped):
            main(options(out))
    return steps


@pytest.mark.parametrize("at", [1, 3, 5])
def test_an_interrupted_run_ends_as_an_unbroken_one(monkeypatch, tmp_path, unbroken, at):
    """Bit by bit: within the first stage, among the halves of the second, and after them."""
    done = interrupt(monkeypatch, tmp_path, at)
    name, step = done[-1]
    saved = weights(tmp_path, name)
    assert (saved["step"], saved["done"]) == (step + 1, False)
    steps = []
    learn = Stage._learn
    monkeypatch.setattr(
        Stage, "_learn", lambda self, *more: steps.append((self.name, self.step)) or learn(self, *more)
    )
    assert main(options(tmp_path)) == 0
    assert done + steps == [("see", 0), ("see", 1), *(("answer", n) for n in range(4))]
    for name in ("see", "answer"):
        assert equal(weights(tmp_path, name), weights(unbroken, name))
    files = [path / "model" / "model.safetensors" for path in (tmp_path, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_seed_is_another_model(small_model):
    a, b, c = (Pupil.new(CPU, seed).state() for seed in (1, 1, 2))
    assert equal(a, b) and not equal(a["model"], c["model"]) and not equal(a["heads"], c["heads"])
    assert not equal(a["heads"], a["late"])


def stage(tmp_path, name="see", **more):
    return Stage(Pupil.new(CPU, 0), name, parser().parse_args(options(tmp_path, **more)), CPU)


def refused(capsys, argv):
    """The one line in which a run says why it does not begin."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_another_run_s_checkpoint_is_not_continued(tmp_path, capsys):
    stage(tmp_path, seed=1).save()
    assert "made with --seed 1, not 0. Give --seed 1" in refused(capsys, options(tmp_path))
    assert "made with --scenes 1, not 3" in refused(capsys, options(tmp_path, seed=1, scenes=3))


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"workers": -1}, {"rate": 0}, {"device": "cpuu"}])
def test_wrong_options(tmp_path, capsys, wrong):
    (name,) = wrong
    name = "'cpuu' is unknown" if name == "device" else name
    assert name in refused(capsys, options(tmp_path, **wrong))
    assert not list(tmp_path.iterdir())


def test_what_is_trained_again_is_logged_once(tmp_path):
    run = stage(tmp_path)
    run.step = 1
    run.save()
    rows = [("see", 1), ("see", 2), ("answer", 7)]
    text = [json.dumps({"stage": name, "step": step}) + "\n" for name, step in rows]
    (tmp_path / "log.jsonl").write_text("".join(text) + '{"stage": "se')
    stage(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == text[0] + text[2]


@pytest.mark.parametrize("how", ["cut", "empty", "text", "list", "other", "fewer", "shape", "no step"])
def test_a_damaged_checkpoint_is_named(tmp_path, capsys, how):
    whole = stage(tmp_path)
    whole.save()
    check = tmp_path / "see.pt"
    saved = weights(tmp_path, "see")
    if how == "cut":
        check.write_bytes(check.read_bytes()[:-1000])
    elif how == "empty":
        check.write_bytes(b"")
    elif how == "text":
        check.write_text("no checkpoint at all")
    elif how == "list":
        torch.save([1, 2], check)
    elif how == "other":
        torch.save({"model": {}}, check)
    elif how == "fewer":
        torch.save(saved | {"optimizers": saved["optimizers"][:1]}, check)
    elif how == "shape":
        saved["pupil"]["heads"]["patch.bias"] = torch.zeros(3)
        torch.save(saved, check)
    else:
        del saved["step"]
        torch.save(saved, check)
    message = refused(capsys, options(tmp_path))
    assert str(check) in message and "Remove it, or choose another --out" in message


def test_a_stage_killed_while_saving_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    first = stage(tmp_path)
    first.step = 1
    first.save()

    def half(state, path):
        Path(path).write_bytes(b"PK")
        raise Stopped

    monkeypatch.setattr(torch, "save", half)
    first.step = 2
    with pytest.raises(Stopped):
        first.save()
    monkeypatch.undo()
    monkeypatch.setattr(train, "build_model", lambda seed: first.pupil.model)
    assert stage(tmp_path).step == 1


# Rate, share, optimizers.


def rates(steps, minutes=1e6, each=0.0):
    """Learning rates of a stage whose steps take ``each`` seconds, as shares of the highest."""
    run = object.__new__(Stage)
    run.steps, run.minutes, run.step, run.seconds = steps, minutes, 0, 0.0
    found = []
    while (share := run._share()) < 1:
        found.append(min((run.step + 1) / train._WARMUP_STEPS, 1.0, (1 - share) / train._FALL))
        run.step, run.seconds = run.step + 1, run.seconds + each
    return found


def test_a_stage_ends_with_its_steps_or_its_minutes():
    assert len(rates(1000)) == 1000 and len(rates(1000, 5, 1.0)) == 300
    assert rates(0) == [] and rates(10, 0) == []
    by_steps = rates(1000)
    assert by_steps[0] == 0.01 and by_steps[99:600] == [1.0] * 501 and by_steps[999] < 0.01


def test_the_rate_of_every_step_is_set(tmp_path, monkeypatch, small_model):
    run = stage(tmp_path, see=4)
    found = []
    for optimizer in run.optimizers:
        step = optimizer.step
        monkeypatch.setattr(
            optimizer, "step", lambda step=step, o=optimizer: found.append(o.param_groups[0]["lr"]) or step()
        )
    run.run()
    expected = [1.5e-3 * rate for rate in rates(4) for _ in range(2)]
    assert found == pytest.approx(expected)


def test_a_stage_of_no_steps_is_left_out(tmp_path):
    run = stage(tmp_path, see=0)
    before = run.pupil.state()["model"]["model.multi_modal_projector.linear_1.weight"].clone()
    run.run()
    assert run.done and run.step == 0
    assert torch.equal(run.pupil.state()["model"]["model.multi_modal_projector.linear_1.weight"], before)


@pytest.mark.parametrize("name", ["see", "answer"])
def test_every_weight_has_one_optimizer(monkeypatch, name):
    monkeypatch.setattr(train, "build_model", build_model)
    pupil = Pupil.new(CPU, 0)
    adam, muon = train._optimizers(pupil.modules(name), 1e-3)
    groups = [{id(w) for group in o.param_groups for w in group["params"]} for o in (adam, muon)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {id(w) for module in pupil.modules(name) for w in module.parameters()}
    # Four of attention, and two in the tower or three in the decoder.
    assert len(groups[1]) == (6 * 6 if name == "see" else 6 * 6 + 8 * 7)
    assert id(pupil.model.get_input_embeddings().weight) in groups[0] or name == "see"


def test_means_are_of_the_steps_they_cover(tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "_learn", lambda self, batch, share: {"patch": torch.tensor(self.step + 1.0)})
    monkeypatch.setattr(train.batches, "load", lambda data, workers: ({} for _ in range(len(data))))
    run = stage(tmp_path, see=60)
    run.step = 20
    run.run()
    found = [(line["step"], line["patch"]) for line in lines(tmp_path)]
    assert found == [(25, 23.0), (50, 38.0), (60, 55.5)]


def test_export_leaves_the_model_as_it_is(tmp_path, small_model):
    model = small_model(3)
    name = train.attention.register()
    model.model.language_model.config._attn_implementation = name
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, tmp_path)
    assert equal(dict(model.state_dict()), before)
    assert model.model.language_model.config._attn_implementation == name
    assert name not in (tmp_path / "config.json").read_text()
    assert (tmp_path / "tokenizer.json").is_file() and build_processor().chat_template
    loaded, _ = load_model(tmp_path, device="cpu")
    assert loaded.dtype == torch.bfloat16


KILLED = """
import sys
from prune2drive.world import train
train._SAVE_SECONDS = -1.0
raise SystemExit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """The reference model in a process of its own, killed by the system; then to its end."""
    monkeypatch.setattr(train, "build_model", build_model)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(options(whole)) == 0
    command = [sys.executable, "-c", KILLED, *options(killed)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    check = killed / "answer.pt"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        for _ in range(6000):
            if check.exists() or run.poll() is not None:
                break
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    saved = weights(killed, "answer")
    assert 1 <= saved["step"] < 4 and not saved["done"]
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert lines(killed)[-1]["step"] == 4
    for name in ("see", "answer"):
        assert equal(weights(killed, name), weights(whole, name))
