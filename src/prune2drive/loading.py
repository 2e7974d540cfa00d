"""Loading a model and its processor from a folder or the hub, with errors that name the file."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from .errors import PruneError, did_you_mean
from .files import read_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_AGAIN = "Copy it again from where the model came from."
_TORCHVISION = "pip install torchvision (the build that matches your torch)"

DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""What names of number types mean; "auto" is the type that the weights are stored in."""


def load_model(
    path_or_hub_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load an image-text-to-text model in evaluation mode, and its processor.

    Args:
        path_or_hub_id: a folder written by ``save_pretrained`` (then nothing is downloaded), or a
            hub id ``org/name``. An existing folder wins.
        dtype: "auto" (as stored), "float32", "bfloat16", "float16", or a torch dtype; see `DTYPES`.
        device: where to put the model; CUDA when there is one, else the CPU.
        attn: attention implementation ("sdpa", "eager", "flash_attention_2", ...); the model's own
            default otherwise.
        trust_remote_code: run Python code that ships with the weights. Only for sources you trust.

    Returns:
        ``(model, processor)``. Without torchvision, a processor that has a video half is built
        without it (``processor.video_processor`` is None): pictures work, videos do not.

    Raises:
        PruneError: no such folder, missing or damaged configuration or weight file, weights that
            do not fill the model, or a processor that needs torchvision.
    """
    dtype, target = parse_dtype(dtype), parse_device(device)
    source, local = _locate(path_or_hub_id)
    if local:
        _check_folder(Path(source))
    common: dict[str, Any] = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    processor = _load_processor(source, common)
    model = _load_weights(source, dtype, attn, common)
    return model.to(target).eval(), processor


def parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """Return "auto" or the torch dtype that ``dtype`` names in `DTYPES`; torch dtypes pass through.

    Raises:
        PruneError: an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PruneError(f"dtype {dtype!r} is unknown.{did_you_mean(str(dtype), DTYPES)}")
    return DTYPES[dtype]


def parse_device(device: str | torch.device | None) -> torch.device:
    """Return the device that ``device`` names; None: CUDA where there is one, else the CPU.

    Raises:
        PruneError: an unknown name, or a device that is not there.
    """
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise PruneError(f"device {device!r} is unknown. Use cpu, cuda or cuda:1.") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise PruneError(f"device {str(target)!r}: this torch sees no CUDA device. Use cpu.")
    if target.type == "meta":
        raise PruneError("device 'meta' holds no numbers. Use cpu, cuda or cuda:1.")
    try:
        torch.empty(0, device=target)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        raise PruneError(
            f"device {str(target)!r} is not there: {_first_line(error)}. Use cpu, cuda or cuda:1."
        ) from None
    return target


def _locate(path_or_hub_id: str | Path) -> tuple[str, bool]:
    text = str(path_or_hub_id)
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path), True
    if path.is_file():
        raise PruneError(f"{text} is a file. Give the folder that holds config.json and the weights.")
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(text):
        raise PruneError(f"no such directory {text!r}; a hub id looks like org/name.")
    return text, False


def _check_folder(folder: Path) -> None:
    """Find missing and damaged files before the loader does: its messages name no file."""
    config = folder / "config.json"
    if not config.is_file():
        raise PruneError(f"{folder} has no config.json. Give a folder written by save_pretrained.")
    _read_object(config)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        entries = _read_object(index).get("weight_map")
        if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
            raise PruneError(f"{index} has no weight_map. {_AGAIN}")
        names = sorted(set(entries.values()))
        for name in names:
            # Windows' rules know every separator and drive letters, on any system.
            if name in ("", ".", "..") or PureWindowsPath(name).name != name:
                raise PruneError(
                    f"{index}: weight file {name!r} is not the plain name of a file in {folder}. {_AGAIN}"
                )
        shards = [folder / name for name in names]
    else:
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            unsafe = sorted(p.name for p in folder.glob("*.bin"))
            found = f" (only {unsafe[0]}, which can run code when opened)" if unsafe else ""
            raise PruneError(f"{folder} has no .safetensors weights{found}. Save them as safetensors first.")
    for shard in shards:
        _check_shard(shard)


def _check_shard(shard: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if not shard.is_file():
        raise PruneError(f"weight file {shard} is missing. Download or copy it again.")
    try:
        with safe_open(str(shard), framework="pt"):  # reads the header and checks the length, not the data
            pass
    except (SafetensorError, OSError) as error:
        raise PruneError(
            f"weight file {shard} ({shard.stat().st_size} bytes) is damaged: {error}. "
            "Download or copy it again."
        ) from None


def _read_object(path: Path) -> dict[str, Any]:
    data = read_json(path, "model", _AGAIN, unique=False)  # others wrote it, and others read it after us
    if not isinstance(data, dict):
        raise PruneError(f"{path} holds a JSON {type(data).__name__}, not an object. {_AGAIN}")
    return data


def _load_weights(source: str, dtype: Any, attn: str | None, common: dict[str, Any]) -> Any:
    import transformers

    options = dict(common, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if attn is not None:
        options["attn_implementation"] = attn
    classes: tuple[str, ...] = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    if not common["trust_remote_code"]:
        # The other two read text-only models, or, with the code that ships with them, odd ones.
        classes = classes[:1]
    failure: Exception | None = None
    for name in classes:
        try:
            model, info = getattr(transformers, name).from_pretrained(source, **options)
        except (ValueError, KeyError) as error:  # this auto class does not know the architecture
            failure = failure or error
            continue
        except (OSError, RuntimeError, ImportError) as error:
            raise PruneError(f"cannot load the model {source}: {_first_line(error)}") from error
        missing = sorted(info.get("missing_keys", ()))
        if missing:
            raise PruneError(
                f"{source}: {len(missing)} weights are missing from its files (first: {missing[0]}); they "
                "would be random. Download or copy the model again."
            )
        return model
    hint = (
        ""
        if common["trust_remote_code"]
        else " If it ships its own code and you trust it: --trust-remote-code."
    )
    raise PruneError(f"cannot load the model {source}: {_first_line(failure)}{hint}") from failure


def _load_processor(source: str, common: dict[str, Any]) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, **common)
    except Exception as error:
        if importlib.util.find_spec("torchvision") is None:
            try:
                return _without_video(source, common)
            except Exception as second:
                # A file that is not there, or no network, is not torchvision's fault.
                if isinstance(error, OSError) and "torchvision" not in f"{error} {second}":
                    raise PruneError(
                        f"cannot load the processor of {source}: {_first_line(error)}"
                    ) from error
                raise PruneError(
                    f"the processor of {source} needs torchvision, which is not installed. "
                    f"Run: {_TORCHVISION}"
                ) from error
        raise PruneError(f"cannot load the processor of {source}: {_first_line(error)}") from error
    if not hasattr(processor, "image_processor"):
        raise PruneError(
            f"{source} has no image processor (found only a {type(processor).__name__}). Copy "
            "preprocessor_config.json or processor_config.json into it, or use a model that sees pictures."
        )
    return processor


def _without_video(source: str, common: dict[str, Any]) -> Any:
    """The picture half of a processor whose video half needs torchvision.

    Tokenizer and image processor load on their own (Pillow backend); only the constructor's check
    insists on a video processor, so a subclass lets None through.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(source, **common)
    base: Any = PROCESSOR_MAPPING[type(config)]
    parts = set(base.get_attributes())
    if not {"tokenizer", "image_processor", "video_processor"} >= parts or "video_processor" not in parts:
        raise PruneError(f"{base.__name__} has parts {sorted(parts)}, not pictures, text and video.")

    def check(self: Any, name: str, value: Any) -> Any:
        return None if value is None else base.check_argument_for_proper_class(self, name, value)

    # get_attributes and from_pretrained read the constructor's signature, so it must stay the base's.
    cls = type(base.__name__, (base,), {"check_argument_for_proper_class": check, "__init__": base.__init__})
    cls.__module__ = base.__module__
    saved, _ = base.get_processor_dict(source, **common)
    known = inspect.signature(base.__init__).parameters
    settings = {k: v for k, v in saved.items() if k in known and k not in parts}
    tokenizer = AutoTokenizer.from_pretrained(source, **common)
    settings.setdefault("chat_template", getattr(tokenizer, "chat_template", None))
    return cls(
        image_processor=AutoImageProcessor.from_pretrained(source, backend="pil", **common),
        tokenizer=tokenizer,
        video_processor=None,
        **settings,
    )


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
