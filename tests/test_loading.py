"""Loading: local folders without network, and every damaged file named."""

import json
import shutil

import pytest
import torch

from families_table import FAMILIES, picture
from prune2drive import PruneError
from prune2drive.loading import DTYPES, load_model, parse_device, parse_dtype
from prune2drive.prompts import build_inputs

BY_NAME = {case.name: case for case in FAMILIES}


def save(case, folder):
    """What ``save_pretrained`` writes; processors with a video half are saved part by part."""
    case.model().save_pretrained(folder)
    processor = case.processor()
    if getattr(processor, "video_processor", 0) is None:
        processor.tokenizer.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
        kept = {"processor_class": type(processor).__name__}
        for name in ("num_image_tokens", "vision_feature_select_strategy", "image_seq_length"):
            if hasattr(processor, name):
                kept[name] = getattr(processor, name)
        (folder / "processor_config.json").write_text(json.dumps(kept))
    else:
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(BY_NAME["llava"], tmp_path_factory.mktemp("llava"))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_onevision", "internvl"])
def test_model_and_processor_come_back(name, tmp_path):
    case = BY_NAME[name]
    model, processor = load_model(save(case, tmp_path), device="cpu", attn="eager")
    assert not model.training
    frame = {"CAM_FRONT": picture(0, 0, 0), "CAM_BACK": picture(0, 0, 1)}
    inputs = build_inputs(processor, model, [frame], "why?", list(frame))
    expected = build_inputs(case.processor(), case.model(), [frame], "why?", list(frame))
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, case.model()(**expected).logits)


def test_dtype(saved):
    assert load_model(saved, dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16
    with pytest.raises(PruneError, match="dtype 'float8'"):
        load_model(saved, dtype="float8")


@pytest.mark.parametrize("name", ["/nowhere/model", "nowhere", "a/b/c", "./org/name", "org/", "org/na me"])
def test_names_that_are_neither_folder_nor_hub_id(name):
    with pytest.raises(PruneError, match=r"no such directory .*org/name"):
        load_model(name)


def test_a_hub_id_without_network_is_not_blamed_on_torchvision(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PruneError, match="nobody/nothing") as caught:
        load_model("nobody/nothing", device="cpu")
    assert "torchvision" not in str(caught.value)


def test_devices_that_are_not_there(saved):
    with pytest.raises(PruneError, match="device 'foo' is unknown"):
        load_model(saved, device="foo")
    with pytest.raises(PruneError, match="device 'meta' holds no numbers"):
        load_model(saved, device="meta")
    with pytest.raises(PruneError, match="device 'cuda:99'"):
        load_model(saved, device="cuda:99")
    with pytest.raises(PruneError, match="device 'fpga' is not there"):
        load_model(saved, device="fpga")


def test_devices_and_types_are_checked_before_files_are_touched():
    with pytest.raises(PruneError, match="device 'foo'"):
        load_model("/nowhere", device="foo")
    with pytest.raises(PruneError, match=r"dtype 'bf61' is unknown\. Did you mean 'bf16'"):
        load_model("/nowhere", dtype="bf61")


def test_one_table_of_types():
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    assert set(DTYPES) == {"auto", *short, *short.values()}
    assert parse_dtype("auto") == "auto"
    for abbreviated, name in short.items():
        assert parse_dtype(abbreviated) is parse_dtype(name) is parse_dtype(getattr(torch, name))
    assert parse_device("cpu") == parse_device(torch.device("cpu")) == torch.device("cpu")
    assert parse_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def refuse(folder, match):
    with pytest.raises(PruneError, match=match):
        load_model(folder, device="cpu")


def test_missing_and_damaged_configuration(folder):
    (folder / "config.json").write_text("{")
    refuse(folder, r"config\.json' is not JSON.*Copy it again from where the model came from")
    (folder / "config.json").unlink()
    refuse(folder, "has no config.json")
    refuse(folder / "model.safetensors", "is a file")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_damaged_weights_are_named(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refuse(folder, "weight file .*model.safetensors .*is damaged.*again")


def test_missing_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, "no .safetensors weights .only pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-2.safetensors"}}')
    refuse(folder, "weight file .*model-1-of-2.safetensors is missing")
    (folder / "model.safetensors.index.json").write_text("{}")
    refuse(folder, "index.json has no weight_map")


@pytest.mark.parametrize(
    "name", ["../b/model.safetensors", "..", ".", "", "sub/a.safetensors", "/etc/passwd", "..\\a", "C:a"]
)
def test_weight_files_are_plain_names_inside_the_folder(folder, name):
    (folder.parent / "b").mkdir()
    shutil.copy(folder / "model.safetensors", folder.parent / "b" / "model.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(folder, r"index\.json: weight file .* is not the plain name of a file in .*Copy it again")


def test_weight_files_may_be_links(folder):
    """Hub caches keep the files elsewhere and link to them."""
    (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")
    load_model(folder, device="cpu")


def test_weights_that_do_not_fill_the_model(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refuse(folder, "1 weights are missing")


def test_folder_without_image_processor(folder):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    refuse(folder, "processor")


def test_unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    refuse(folder, "cannot load the")
