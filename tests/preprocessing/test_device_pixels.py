"""Frames worked on by the device give what the stock image processor gives, to the level."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from families_table import FAMILIES, FAMILY_IDS
from prune2drive import PruneError
from prune2drive.preprocessing import DevicePreprocessor
from tiny_tokenizer import build_tokenizer

SIZES = [(90, 160), (97, 61), (20, 33), (64, 64), (28, 84)]
STOCK = {
    "clip": lambda: transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    ),
    "clip, smaller crop": lambda: transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 60}, crop_size={"height": 41, "width": 50}
    ),
    "llava": lambda: transformers.LlavaImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    ),
    "llava, padded": lambda: transformers.LlavaImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True
    ),
    "siglip": lambda: transformers.SiglipImageProcessorPil(size={"height": 56, "width": 70}),
    "siglip, bilinear": lambda: transformers.SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, resample=Image.Resampling.BILINEAR
    ),
    "siglip, not normalised": lambda: transformers.SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, do_normalize=False
    ),
    "siglip, not rescaled": lambda: transformers.SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, do_rescale=False
    ),
    "llava_onevision": lambda: transformers.LlavaOnevisionImageProcessorPil(
        size={"height": 56, "width": 56}
    ),
    "internvl, one tile": lambda: transformers.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}),
    "internvl, tiles": lambda: transformers.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=6
    ),
    "qwen2_vl": lambda: transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    ),
}  # fmt: skip


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def lines(height, width):
    """Hard edges and full contrast, where bicubic overshoots and levels clamp."""
    y, x = np.mgrid[:height, :width]
    channels = [(x // 3 + y // 5) % 2 * 255, (x * y) % 7 * 42, x * 255 // width]
    return np.stack(channels, -1).astype(np.uint8)


def stock_pixels(stock, samples):
    return stock([[Image.fromarray(f) for f in frames] for frames in samples], return_tensors="pt")


def in_levels(pixels, stock):
    """Undo normalising and rescaling, in float64."""
    x = pixels.double()
    if stock.do_normalize:
        shape = (3, 1, 1)
        if x.dim() == 2:  # Qwen: channels before time and patch
            x, shape = x.reshape(len(x), 3, -1), (3, 1)
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(shape) for v in (stock.image_mean, stock.image_std)
        )
        x = x * std + mean
    return x / stock.rescale_factor if stock.do_rescale else x


def compare(stock, samples):
    want = stock_pixels(stock, samples)
    got = DevicePreprocessor.from_processor(stock, "cpu")(samples)
    want.pop("num_patches", None)  # the processor reads it and drops it
    assert set(got) == set(want)
    for key in want:
        assert got[key].dtype == want[key].dtype and got[key].shape == want[key].shape, key
        if key != "pixel_values":
            assert torch.equal(got[key], want[key]), key
        else:
            # In levels first, so that a failure says how far off, then to the last bit.
            off = (in_levels(got[key], stock) - in_levels(want[key], stock)).abs().max()
            assert off < 0.5, f"up to {float(off):.2f} levels off"
            assert torch.equal(got[key], want[key])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", STOCK)
def test_everything_is_the_stock_processors(name, size):
    compare(STOCK[name](), [[noise(*size), lines(*size)], [lines(*size), noise(*size, seed=1)]])


@pytest.mark.parametrize("name", ["siglip", "llava_onevision", "internvl, tiles", "qwen2_vl"])
def test_camera_frames(name):
    """The size of a driving camera, and the reduction that comes with it."""
    large = {
        "siglip": lambda: transformers.SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        "llava_onevision": lambda: transformers.LlavaOnevisionImageProcessorPil(
            size={"height": 384, "width": 384}
        ),
        "internvl, tiles": lambda: transformers.GotOcr2ImageProcessorPil(
            size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=6
        ),
        "qwen2_vl": lambda: transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 3136, "longest_edge": 1_440_000}
        ),
    }[name]()
    frames = [noise(900, 1600)] if name != "llava_onevision" else [noise(450, 800), lines(450, 800)]
    compare(large, [frames])


@pytest.mark.parametrize("name", ["siglip", "llava_onevision", "internvl, tiles", "clip"])
def test_pictures_of_different_sizes(name):
    compare(STOCK[name](), [[noise(90, 160), lines(64, 64)], [lines(33, 20), noise(90, 160, seed=1)]])


def test_qwen_pictures_have_grids_of_their_own():
    compare(STOCK["qwen2_vl"](), [[noise(56, 84), lines(84, 56)], [noise(90, 160), lines(28, 84)]])


@pytest.mark.parametrize("form", ["array", "tensor", "tensor with samples", "list"])
def test_forms_of_frames(form):
    stock = STOCK["llava_onevision"]()
    frames = np.stack([noise(90, 160, seed) for seed in range(4)])
    given = {
        "array": frames,
        "tensor": torch.from_numpy(frames),
        "tensor with samples": torch.from_numpy(frames.reshape(2, 2, 90, 160, 3)),
        "list": list(frames),
    }[form]
    out = DevicePreprocessor.from_processor(stock, "cpu")(given)
    want = stock_pixels(stock, frames.reshape(2, 2, 90, 160, 3) if "samples" in form else [frames])
    assert torch.equal(out["pixel_values"], want["pixel_values"])
    assert out["batch_num_images"].tolist() == want["batch_num_images"].tolist()


def test_dtype_is_the_models():
    stock = STOCK["siglip"]()
    half = DevicePreprocessor.from_processor(stock, "cpu", torch.bfloat16)([noise(90, 160)])["pixel_values"]
    assert torch.equal(half, stock_pixels(stock, [[noise(90, 160)]])["pixel_values"].bfloat16())


@pytest.mark.parametrize("name", STOCK)
def test_a_second_call_reads_nothing_back(name):
    """On the meta device whatever reads a value, or copies from it, raises."""
    stock = STOCK[name]()
    prepare = DevicePreprocessor.from_processor(stock, "cpu")
    frames = torch.from_numpy(np.stack([noise(90, 160), lines(90, 160)]))
    want = prepare(frames)["pixel_values"].shape
    prepare.device = torch.device("meta")
    prepare._resize.device = prepare.device
    prepare._constants = {key: value.to("meta") for key, value in prepare._constants.items()}
    passes = prepare._resize._passes
    for key, made in passes.items():
        passes[key] = made._replace(seen=made.seen.to("meta"), weights=made.weights.to("meta"))
    known = len(passes), len(prepare._constants)
    out = prepare(frames.to("meta"))["pixel_values"]
    assert out.is_meta
    assert out.shape == want
    assert (len(passes), len(prepare._constants)) == known


REPRODUCED = (
    "llava", "llava_onevision", "internvl", "aya_vision", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
)  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES, ids=FAMILY_IDS)
def test_processors_of_families(case):
    whole = case.build_processor(build_tokenizer(case.named_tokens, case.plain_tokens))
    if case.name not in REPRODUCED:
        with pytest.raises(PruneError, match="is not reproduced on the device"):
            DevicePreprocessor.from_processor(whole, "cpu")
        return
    frames = [noise(48, 80), lines(48, 80)]
    out = DevicePreprocessor.from_processor(whole, "cpu")(frames)
    want = case.encode([case.prompt(2)], [[Image.fromarray(f) for f in frames]])
    for key, value in out.items():
        assert torch.equal(value, want[key]), key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.Idefics3ImageProcessorPil(), "Idefics3ImageProcessorPil is not reproduced"),
        (lambda: transformers.LlavaNextImageProcessorPil(), "not reproduced"),
        (
            lambda: transformers.SiglipImageProcessorPil(resample=Image.Resampling.LANCZOS),
            "resample=.*only bilinear and bicubic",
        ),
        (
            lambda: transformers.SiglipImageProcessorPil(do_rescale=False, do_normalize=False),
            "do_normalize=False",
        ),
        (lambda: transformers.CLIPImageProcessorPil(do_pad=True), "do_pad=True"),
        (
            lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 5, "longest_edge": 9}),
            "shortest_edge beside longest_edge",
        ),
    ],
)
def test_refuses_what_it_does_not_reproduce(make, message):
    with pytest.raises(PruneError, match=message):
        DevicePreprocessor.from_processor(make(), "cpu")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "frames hold"),
        (np.zeros((2, 8, 8, 3), np.float32), "frames is float32, not uint8|frames is torch.float32"),
        (np.zeros((2, 3, 8, 8), np.uint8), "shape"),
        ([np.zeros((8, 8), np.uint8)], r"frames\[0\]\[0\] has shape"),
        ([[noise(8, 8)], noise(8, 8)], r"frames\[1\] is a picture beside lists"),
        (np.zeros((1, 0, 8, 3), np.uint8), "empty picture"),
    ],
)
def test_refuses_frames(frames, message):
    with pytest.raises(PruneError, match=message):
        DevicePreprocessor.from_processor(STOCK["siglip"](), "cpu")(frames)


def test_a_single_picture_of_onevision_is_refused():
    with pytest.raises(PruneError, match="cut into tiles"):
        DevicePreprocessor.from_processor(STOCK["llava_onevision"](), "cpu")([noise(90, 160)])


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real frames are not here")
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "internvl, tiles"])
def test_real_frames(name):
    pictures = sorted(REAL.rglob("*.jpg"))[:2]
    if len(pictures) < 2:
        pytest.skip("the real frames are not here")
    compare(STOCK[name](), [[np.asarray(Image.open(path).convert("RGB")) for path in pictures]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", STOCK)
def test_on_a_gpu(name):
    stock = STOCK[name]()
    frames = torch.from_numpy(np.stack([noise(90, 160), lines(90, 160)]))
    out = DevicePreprocessor.from_processor(stock, "cuda")(frames)["pixel_values"].cpu()
    want = stock_pixels(stock, [list(frames.numpy())])["pixel_values"]
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)  # a division may end in another last bit
