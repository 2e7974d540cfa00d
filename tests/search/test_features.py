"""The encode-once cache: what is kept, what is encoded anew, and how much room it takes."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.search.features import FeatureCache, default_folder

KEY = {"weights": "abc", "dtype": "torch.float32"}
BIG = 25_000
"""Numbers in a frame of about 100 kB."""


def value(frame, numbers=10):
    generator = torch.Generator().manual_seed(sum(map(ord, frame)))
    return torch.randn(numbers, generator=generator)


class Encoder:
    """Remembers what it was asked; raises before item ``fail``."""

    def __init__(self, numbers=10, fail=None, error=KeyboardInterrupt):
        self.asked, self.numbers, self.fail, self.error = [], numbers, fail, error

    def __call__(self, frames):
        for frame in frames:
            if len(self.asked) == self.fail:
                raise self.error
            self.asked.append(frame)
            numbers = self.numbers[frame] if isinstance(self.numbers, dict) else self.numbers
            yield {"features": value(frame, numbers)}


def filled(cache, frames, **options):
    """What had to be encoded."""
    encoder = Encoder(**options)
    count = cache.fill(frames, encoder, batch=2)
    assert count == len(encoder.asked)
    return encoder.asked


def files(cache):
    return sorted(cache.folder.glob("*.safetensors"))


def taken(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def age(cache, days):
    """Make all of a key look unused for so long."""
    then = time.time() - 86400 * days
    for path in [*cache.folder.iterdir(), cache.folder]:
        os.utime(path, (then, then))


# -- what is encoded ----------------------------------------------------------------------------------


def test_only_missing_frames_are_encoded(tmp_path):
    with FeatureCache(tmp_path, KEY) as cache:
        assert filled(cache, ["a", "b", "c"]) == ["a", "b", "c"]
        assert filled(cache, ["d", "b", "a", "e"]) == ["d", "e"]
        assert filled(cache, ["a", "e"]) == []
        for frame in "abcde":
            assert torch.equal(cache[frame]["features"], value(frame))


def test_another_opening_finds_all(tmp_path):
    with FeatureCache(tmp_path, KEY) as cache:
        filled(cache, ["a", "b"])
        with FeatureCache(tmp_path, dict(reversed(KEY.items()))) as beside:
            assert filled(beside, ["a", "b"]) == []
    with FeatureCache(str(tmp_path), KEY) as later:
        assert filled(later, ["a", "b"]) == []
        assert torch.equal(later["b"]["features"], value("b"))


@pytest.mark.parametrize("change", [{"weights": "abd"}, {"dtype": "torch.bfloat16"}, {"more": None}])
def test_a_changed_key_is_encoded_anew(tmp_path, change):
    with FeatureCache(tmp_path, KEY) as one, FeatureCache(tmp_path, KEY | change) as two:
        filled(one, ["a"])
        assert two.folder != one.folder
        with pytest.raises(PruneError, match="no features of a"):
            two["a"]
        assert filled(two, ["a"], numbers=4) == ["a"]
        assert len(one["a"]["features"]) == 10 and len(two["a"]["features"]) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_fill_keeps_what_was_done(tmp_path, error):
    frames = list("abcdefg")
    with pytest.raises(error), FeatureCache(tmp_path, KEY) as cache:
        cache.fill(frames, Encoder(fail=3, error=error), batch=2)
    with FeatureCache(tmp_path, KEY) as cache:
        assert filled(cache, frames) == ["d", "e", "f", "g"]
        assert torch.equal(cache["c"]["features"], value("c"))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "gone"])
def test_a_damaged_file_is_encoded_again(tmp_path, damage):
    with FeatureCache(tmp_path, KEY) as cache:
        filled(cache, ["a"])
        (path,) = files(cache)
        filled(cache, ["b"])
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:-7], "garbage": b"garbage" * 40, "empty": b""}[damage])
    with FeatureCache(tmp_path, KEY) as cache:
        with pytest.raises(PruneError, match=r"no features of a .*Delete that folder"):
            cache["a"]
        assert filled(cache, ["a", "b"]) == ["a"]
        assert torch.equal(cache["a"]["features"], value("a"))


def test_a_file_under_another_name_is_not_believed(tmp_path):
    with FeatureCache(tmp_path, KEY) as cache:
        filled(cache, ["a"])
        (one,) = files(cache)
        filled(cache, ["b"])
        (two,) = set(files(cache)) - {one}
    shutil.copy(one, two)
    with FeatureCache(tmp_path, KEY) as cache:
        assert filled(cache, ["a", "b"]) == ["b"]
        assert torch.equal(cache["b"]["features"], value("b"))


def test_progress_tells_every_frame_once(tmp_path):
    with FeatureCache(tmp_path, KEY) as cache:
        filled(cache, ["b", "d"])
        told = []
        cache.fill(list("abcde"), Encoder(), batch=2, progress=told.append)
        assert told[0] == 2 and sum(told) == 5
        told.clear()
        cache.fill(list("abc"), Encoder(), progress=told.append)
        assert sum(told) == 3


# -- what is read -------------------------------------------------------------------------------------


def test_values_are_read_back_bit_for_bit(tmp_path):
    odd = torch.tensor([0.1, -0.0, float("inf"), 1e-40, float("nan")])
    item = {
        "half": torch.randn(3, 5).bfloat16(),
        "order": torch.tensor([[2**31 - 1, -1], [0, -(2**31)]], dtype=torch.int32),
        "odd": odd,
        "turned": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "lengths": torch.tensor([3, 4]),
    }
    with FeatureCache(tmp_path, KEY) as cache:
        cache.fill(["a"], lambda frames: [item])
    with FeatureCache(tmp_path, KEY) as cache:
        assert cache["a"].keys() == item.keys()
        for name, tensor in cache["a"].items():
            assert tensor.dtype == item[name].dtype and tensor.shape == item[name].shape
            theirs = item[name].contiguous()
            assert tensor.contiguous().view(torch.uint8).equal(theirs.view(torch.uint8)), name


def test_files_are_mapped_and_not_read(tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list what is mapped")
    with FeatureCache(tmp_path, KEY) as cache:
        filled(cache, ["a"], numbers=BIG)
        item = cache["a"]
        (path,) = files(cache)
        assert str(path.resolve()) in maps.read_text()
        assert torch.equal(item["features"], value("a", BIG))


def test_the_folder_is_the_users_cache_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder().is_relative_to(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder().is_relative_to(tmp_path / "home")


# -- room ---------------------------------------------------------------------------------------------


def test_a_key_above_the_limit_is_refused_before_anything_is_written(tmp_path):
    with FeatureCache(tmp_path, KEY, limit=250_000) as cache:
        encoder = Encoder(numbers=BIG)
        with pytest.raises(
            PruneError, match=r"3 of 3 frames take 0.000279 GiB more.*may hold 0.000233 GiB.*fewer"
        ):
            cache.fill(["a", "b", "c"], encoder, batch=1)
        assert encoder.asked == ["a"] and files(cache) == []
        assert filled(cache, ["a", "b"], numbers=BIG) == ["a", "b"]


def test_what_is_there_counts(tmp_path):
    with FeatureCache(tmp_path, KEY, limit=250_000) as cache:
        filled(cache, ["a", "b"], numbers=BIG)
        with pytest.raises(PruneError, match="1 of 3 frames take"):
            cache.fill(["a", "b", "c"], Encoder(numbers=BIG))
        assert len(files(cache)) == 2


def test_the_key_used_longest_ago_makes_room(tmp_path):
    caches = [FeatureCache(tmp_path, {"key": n}, limit=350_000) for n in range(4)]
    for days, cache in zip((3, 2, 1), caches, strict=False):
        with cache:
            filled(cache, ["a"], numbers=BIG)
        age(cache, days)
    with caches[0]:  # the oldest, used again
        assert filled(caches[0], ["a"], numbers=BIG) == []
    with caches[3]:
        filled(caches[3], ["a"], numbers=BIG)
    assert [cache.folder.exists() for cache in caches] == [True, False, True, True]


def test_no_more_goes_than_must(tmp_path):
    caches = [FeatureCache(tmp_path, {"key": n}, limit=350_000) for n in range(3)]
    for cache in caches:
        with cache:
            filled(cache, ["a"], numbers=BIG)
    assert all(cache.folder.exists() for cache in caches)


def test_a_key_in_use_stays(tmp_path):
    old, used, new = (FeatureCache(tmp_path, {"key": n}, limit=250_000) for n in range(3))
    with used, new:
        filled(used, ["a"], numbers=BIG)
        age(used, 9)
        with old:
            filled(old, ["a"], numbers=BIG)
        age(old, 1)
        filled(new, ["a"], numbers=BIG)  # the newer one goes, nobody uses it
        assert used.folder.exists() and not old.folder.exists()
        with pytest.raises(PruneError, match=r"full of what other runs use.*wait"):
            new.fill(["a", "b"], Encoder(numbers=BIG))
        assert torch.equal(used["a"]["features"], value("a", BIG))
    with new:  # they are done
        assert filled(new, ["a", "b"], numbers=BIG) == ["b"]
    assert not used.folder.exists()


def test_larger_frames_that_come_later_are_within_the_limit(tmp_path):
    sizes = {"a": 250, "b": BIG, "c": BIG, "d": BIG}
    with FeatureCache(tmp_path, KEY, limit=250_000) as cache:
        with pytest.raises(PruneError, match="4 frames take"):
            cache.fill(list(sizes), Encoder(numbers=sizes), batch=4)
        assert taken(tmp_path) <= 250_000


def test_larger_frames_that_come_later_make_room(tmp_path):
    with FeatureCache(tmp_path, {"key": 0}) as old:
        filled(old, ["a"], numbers=BIG)
    sizes = {"a": 250, "b": BIG, "c": BIG}
    with FeatureCache(tmp_path, {"key": 1}, limit=250_000) as new:
        assert filled(new, list(sizes), numbers=sizes) == ["a", "b", "c"]
    assert not old.folder.exists()
    assert taken(tmp_path) <= 250_000


def test_what_is_no_key_is_never_deleted(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights.safetensors").write_bytes(b"x" * 300_000)
    for n in range(4):
        with FeatureCache(tmp_path, {"key": n}, limit=250_000) as cache:
            filled(cache, ["a"], numbers=BIG)
    assert (tmp_path / "mine" / "weights.safetensors").exists()


# -- other processes, other errors --------------------------------------------------------------------

FRAMES = [f"frame {n}" for n in range(12)]


def work(folder, log, ready):
    """What a worker of the test below does."""

    def encode(frames):
        time.sleep(0.05)  # long enough for the other one to come
        with open(log, "a") as file:
            file.writelines(f"{frame}\n" for frame in frames)
        return [{"features": value(frame)} for frame in frames]

    with FeatureCache(folder, KEY) as cache:
        ready.wait()
        cache.fill(FRAMES, encode, batch=2)
        assert all(torch.equal(cache[frame]["features"], value(frame)) for frame in FRAMES)


def test_two_processes_encode_every_frame_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    logs = [tmp_path / "log 0", tmp_path / "log 1"]
    workers = [context.Process(target=work, args=(tmp_path / "cache", log, ready)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    encoded = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
    assert sorted(encoded) == sorted(FRAMES)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match=r"cannot write the feature cache .*file.*Choose another"):
        FeatureCache(tmp_path / "file" / "cache", KEY).__enter__()


def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    with FeatureCache(tmp_path, KEY) as cache:
        cache.fill(["a"], Encoder())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(PruneError, match=r"cannot write .*Make room and run again"):
                cache.fill(["a", "b"], Encoder(numbers=BIG))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(files(cache)) == 1 and not list(tmp_path.rglob("*.tmp"))
        assert filled(cache, ["a", "b"]) == ["b"]


@pytest.mark.parametrize("text", ["{", json.dumps({"format": 1, "weights": "other"})])
def test_a_folder_with_a_damaged_or_another_key(tmp_path, text):
    with FeatureCache(tmp_path, KEY) as cache:
        filled(cache, ["a"])
    (found,) = cache.folder.glob("*.json")
    found.write_text(text)
    with pytest.raises(PruneError, match="Delete"):
        FeatureCache(tmp_path, KEY).__enter__()
