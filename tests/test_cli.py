"""The command line: help, one red line for every mistake, and a whole run on a tiny model."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from families_table import FAMILIES
from prune2drive import PruneError, registry
from prune2drive.allocators import LayerAveraged
from prune2drive.cli import COMMANDS, build_parser, main
from prune2drive.commands.options import check_output, parse_retention
from prune2drive.registry import list_methods
from prune2drive.rig import NUSCENES


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame")
    for i, camera in enumerate(NUSCENES.names):
        Image.effect_noise((48, 27), 40 + 10 * i).convert("RGB").save(folder / f"{camera}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    case = next(case for case in FAMILIES if case.name == "llava")
    case.model().save_pretrained(folder)
    case.processor().save_pretrained(folder)
    return folder


def error_of(capsys, *argv) -> str:
    assert main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_help_names_every_command_and_imports_none(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out and line in out for name, (_, line) in COMMANDS.items())
    code = "import sys, prune2drive.cli as c; c.build_parser(); print({'torch', 'rich'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser(command).parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"prune2drive {command}" in capsys.readouterr().out


def test_module_and_version():
    out = subprocess.run(
        [sys.executable, "-m", "prune2drive", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("prune2drive 0.")


@pytest.mark.parametrize("argv", [[], ["nothing"], ["run"], ["run", "--model", "x"]])
def test_wrong_use_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_methods_lists_all(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in list_methods())
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:1].strip()}
    assert rows["tfps"] == ["before", "-", "-", "-"]
    assert rows["fastv"] == ["layer", "2", "yes", "-", "last_attention"]
    assert rows["pyramiddrop"] == ["layers", "8,", "16,", "24", "of", "32", "yes", "-", "own_attention"]
    assert rows["duet"][:8] == ["before,", "layers", "16,", "24", "of", "32", "yes", "yes"]
    assert "T-FPS: token-wise farthest point sampling" in out
    assert "`" not in out


def test_a_method_that_cannot_be_loaded_hides_no_other(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", {**registry._METHODS, "gone": "no_such_module:X"})
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "cannot be loaded" in out
    assert "no_such_module" in out
    assert "visionzip" in out
    assert "no_such_module" in error_of(capsys, "methods", "gone")


def test_methods_tells_about_one(capsys):
    assert main(["methods", "sparsevlm"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "SparseVLM: three stages",
        "layers 3, 7 and 16 of 32",
        "recycle = 0.3 share of the dropped tokens that is recycled",
        "arXiv 2410.04417",
        "the attention that layer K-1 paid from the instruction's tokens",
        "Decisions",
        "309 for both",
        "prune2drive.schedules.sparsevlm.SparseVLM",
    ):
        assert words in out
    assert "`" not in out


@pytest.mark.parametrize("name", list_methods())
def test_every_method_can_be_told_about(name, capsys):
    assert main(["methods", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(name)
    assert all(title in out for title in ("Chooses", "Source", "Formula", "Decisions"))


def test_a_method_that_is_none(capsys):
    assert "Did you mean 'tfps'" in error_of(capsys, "methods", "tpfs")


@pytest.fixture
def untouched(monkeypatch):
    """Fails a test that reaches a model or draws anything."""
    import prune2drive.benchmarks.world
    import prune2drive.loading
    import prune2drive.profiling.command
    import prune2drive.profiling.shapes

    def touched(*args, **kwargs):
        raise AssertionError("a model was touched")

    monkeypatch.setattr(prune2drive.benchmarks.world, "samples", touched)
    monkeypatch.setattr(prune2drive.profiling.shapes, "build_model", touched)
    for module in (prune2drive.loading, prune2drive.profiling.command):
        monkeypatch.setattr(module, "load_model", touched)


def command_line(name, pictures):
    files = ["--model", "m", "--images", pictures]
    return {
        "run": ["run", *files, "--question", "why?"],
        "demo": ["demo"],
        "profile": ["profile", *files],
    }[name]


@pytest.mark.parametrize("command", ["run", "demo", "profile"])
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["--method", "tfsp"], "Did you mean 'tfps'"),
        (["--method", "tfps,stride"], "unknown method 'tfps,stride'"),
        (["--retention", "nan"], "retention nan is not in (0, 1]"),
        (["--retention", "10"], "for 10% write 0.10"),
        (["--retention", "lots"], "--retention 'lots'"),
        (["--retention", "CAM_FRNT=0.2,*=0.1"], "Did you mean 'CAM_FRONT'"),
        (["--retention", "CAM_FRONT=0.2,CAM_BACK=0.2"], "CAM_FRONT_LEFT has no rate"),
        (["--retention", "CAM_FRONT=1.5,*=0.1"], "retention of CAM_FRONT 1.5 is not in"),
    ],
)
def test_pruning_options_mean_the_same_and_are_checked_first(
    command, mistake, message, pictures, capsys, untouched
):
    assert message in error_of(capsys, *command_line(command, pictures), *mistake)


@pytest.mark.parametrize("command", ["run", "demo", "profile"])
def test_positions_are_one_of_two(command, pictures, capsys):
    for text in ("reindexed", ""):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in [*command_line(command, pictures), "--positions", text]])
        assert stop.value.code == 2
        assert "keep" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "profile"])
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["--dtype", "int8"], "dtype 'int8' is unknown"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--cameras", "CAM_FRONT,"], "'' is not in the rig"),
        (["--frame", "3"], "needs a JSON file"),
    ],
)
def test_model_options_are_checked_first(command, mistake, message, pictures, capsys, untouched):
    assert message in error_of(capsys, *command_line(command, pictures), "--device", "cpu", *mistake)


@pytest.mark.parametrize("given", ["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("command", ["run", "profile"])
def test_every_type_name_is_taken(command, given, pictures, capsys):
    line = [*command_line(command, pictures), "--device", "cpu", "--dtype", given]
    assert "no such directory 'm'" in error_of(capsys, *line)


@pytest.mark.parametrize(
    ("command", "option"),
    [("run", "--json"), ("run", "--report"), ("demo", "--report"), ("profile", "--json")],
)
def test_outputs_are_checked_first(command, option, pictures, tmp_path, capsys, untouched):
    line = command_line(command, pictures)
    assert f"{option} {tmp_path} is a folder" in error_of(capsys, *line, option, tmp_path)
    assert "Create it first" in error_of(capsys, *line, option, tmp_path / "no" / "file")


def test_outputs_may_be_devices_and_links(tmp_path):
    check_output(None, "--json")
    check_output(os.devnull, "--json")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "file")
    with pytest.raises(PruneError, match="Create it first"):
        check_output(str(tmp_path / "link"), "--json")


def test_shared_options_read_the_same_in_every_help(capsys):
    def helps(command):
        subparsers = next(a for a in build_parser(command)._actions if hasattr(a, "choices") and a.choices)
        return {
            a.option_strings[0]: (a.help, a.default, a.metavar, a.choices)
            for a in subparsers.choices[command]._actions
            if a.option_strings
        }

    run, demo, profile = helps("run"), helps("demo"), helps("profile")
    pruning = ["--retention", "--method", "--positions"]
    models = ["--device", "--dtype", "--attn", "--trust-remote-code", "--rig", "--cameras", "--frame"]
    assert all(run[option] == demo[option] for option in pruning)
    assert all(run[option] == profile[option] for option in [*pruning, *models])


def test_mistakes_are_one_line(pictures, tmp_path, capsys):
    run = ["run", "--images", pictures, "--question", "why?", "--model"]
    assert "a hub id looks like org/name" in error_of(capsys, *run, "/nowhere")
    assert "--retention 'lots'" in error_of(capsys, *run, "m", "--retention", "lots")
    assert "no folder" in error_of(capsys, *run, "m", "--report", tmp_path / "no" / "r.html")
    assert "is a folder" in error_of(capsys, *run, "m", "--json", tmp_path)
    assert "CAM_FRONT" in error_of(capsys, *run, "m", "--cameras", "CAM_FRNT")
    assert "once" in error_of(capsys, *run, "m", "--cameras", "CAM_BACK,CAM_BACK")
    assert "unknown rig" in error_of(capsys, *run, "m", "--rig", "nuscens")
    assert "at least 1" in error_of(capsys, *run, "m", "--max-new-tokens", "0")
    assert "needs a JSON file" in error_of(capsys, *run, "m", "--frame", "3")
    assert "empty" in error_of(capsys, "run", "--images", pictures, "--model", "m", "--question", " ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("avg:0.1", LayerAveraged(0.1)),
        ("CAM_FRONT=0.25, *=0.08", {"CAM_FRONT": 0.25, "*": 0.08}),
        (",".join(f"CAMERA_{i}=0.5" for i in range(100)), {f"CAMERA_{i}": 0.5 for i in range(100)}),
    ],
)
def test_retention(text, value):
    assert parse_retention(text) == value


def test_retention_from_a_file(tmp_path):
    path = tmp_path / "preset.json"
    path.write_text('{"rates": {"CAM_FRONT": 0.25, "*": 0.08}}')
    assert parse_retention(str(path)) == {"CAM_FRONT": 0.25, "*": 0.08}
    path.write_text('{"rates": {"CAM_FRONT": 0.25, "CAM_FRONT": 0.08}}')
    with pytest.raises(PruneError, match="CAM_FRONT: written twice"):
        parse_retention(str(path))
    path.write_text('{"rates": {"CAM_FRONT": NaN}}')
    with pytest.raises(PruneError, match="retention of CAM_FRONT nan"):
        parse_retention(str(path))


@pytest.mark.parametrize(
    "text", ["", "CAM_FRONT", "CAM_FRONT=", "=0.1", "a=0.1,a=0.2", "a=0.1,", "a=x", "avg:", "avg:x"]
)
def test_wrong_retention(text):
    with pytest.raises(PruneError, match="--retention"):
        parse_retention(text)


@pytest.mark.parametrize("compare", [[], ["--compare"]])
def test_run_answers_and_writes_page_and_json(model, pictures, tmp_path, capsys, compare):
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    argv = ["run", "--model", model, "--images", pictures, "--question", "What is ahead?", "--device", "cpu"]
    argv += ["--retention", "CAM_FRONT=0.5,*=0.25", "--max-new-tokens", "3", "--report", page, "--json", data]
    assert main([str(a) for a in [*argv, *compare]]) == 0
    out = capsys.readouterr().out
    assert "Answer" in out
    assert "Choosing" in out
    result = json.loads(data.read_text())
    sample = result["record"]["samples"][0]
    assert list(sample) == list(NUSCENES.names)
    assert [sample[c]["kept"] for c in ("CAM_FRONT", "CAM_BACK")] == [18, 9]  # of 36 tokens
    assert (result["unpruned_answer"] is not None) == bool(compare)
    html = page.read_text()
    assert "18 of 36 kept (50%)" in html
    assert "What is ahead?" in html
    assert html.count("The model sees only the middle 57%.") == 6  # CLIP cuts 42x24 to its middle 24
    assert str(model.parent) not in html  # where things lie stays private


def test_run_with_some_cameras_in_another_order(model, pictures, tmp_path):
    data = tmp_path / "r.json"
    argv = [
        "run",
        "--model",
        model,
        "--images",
        pictures,
        "--question",
        "why?",
        "--device",
        "cpu",
        "--json",
        data,
    ]
    assert main([str(a) for a in [*argv, "--cameras", "CAM_BACK,CAM_FRONT", "--max-new-tokens", "1"]]) == 0
    assert list(json.loads(data.read_text())["record"]["samples"][0]) == ["CAM_BACK", "CAM_FRONT"]


def test_demo(tmp_path, capsys):
    page = tmp_path / "d.html"
    assert main(["demo", "--scenes", "2", "--repeat", "1", "--report", str(page)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "84 visual tokens" in out
    assert "with all 864" in out
    text = page.read_text()
    assert "Questions about these pictures" in text
    assert "tfps" in text
    assert "random" in text


def test_demo_says_what_is_wrong_with_its_model(tmp_path, capsys):
    assert "no such folder" in error_of(capsys, "demo", "--model", tmp_path / "nowhere")
    assert "has no config.json" in error_of(capsys, "demo", "--model", tmp_path)
