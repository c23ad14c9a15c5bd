"""The initial policy of the token bandit: trained once towards the closed form, then cached.

Shapes: ``[B, L]`` token ids and ``[B, L, V]`` logits with ``L = 9`` positions and ``V = 100``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.functional.bandit import ACTIONS, RESPONSE_TOKENS, reference_probs
from lit_pref.functional.rng import generator
from lit_pref.types import Refusal

__all__ = ["START_VERSION", "closed_form_kl", "start_weights"]

log = logging.getLogger(__name__)

START_VERSION = 1
"""Raised with any change that changes the weights of the start."""
_STEPS, _BATCH, _LR = 100, 32, 0.01
_LIMIT = 0.05  # nats a token


def start_weights(
    model: Any, *, init_seed: int, cache_dir: str | Path | None = None
) -> dict[str, Tensor]:
    """Weights of a supervised start for models of this configuration.

    Args:
        model: a Hugging Face causal LM; only its configuration and parameter names are read.
        init_seed: of the random weights and of the training data.
        cache_dir: folder that keeps the weights for later runs; None trains each time.

    Returns:
        Each parameter's float32 value by name, on the CPU.

    Raises:
        Refusal: the model is not what its configuration describes.
        RuntimeError: the distance to the closed form stayed above 0.05 nats a token.
    """
    with torch.device("meta"):
        shapes = _shapes(_fresh(model.config))
    if _shapes(model) != shapes:
        raise Refusal(
            f"task=token_bandit initialises a plain causal LM; the parameters of this "
            f"{type(model).__name__} are not those of its configuration (wrapped, adapted, or "
            "tied otherwise). Use model=gpt_nano, and add adapters after the initialisation"
        )
    if cache_dir is None:
        return _supervised_start(model.config, init_seed)
    key = _key(model.config, init_seed)
    path = Path(cache_dir).expanduser() / f"token_bandit_{key}.safetensors"
    weights = _read_weights(path, shapes)
    if weights is None:
        weights = _supervised_start(model.config, init_seed)
        _write_weights(path, weights)
    return weights


def closed_form_kl(logits: Tensor) -> Tensor:
    """Exact ``KL(pi || p) = sum_a pi(a) log(pi(a) / p(a))`` to the closed-form distribution.

    Args:
        logits: [..., V] next-token logits of the policy.

    Returns:
        [...] nats.
    """
    logps = logits.float().log_softmax(-1)
    target = reference_probs().log().to(logps)
    return (logps.exp() * (logps - target)).sum(-1)


def _supervised_start(config: Any, init_seed: int) -> dict[str, Tensor]:
    """Weights that minimise the mean of ``closed_form_kl`` over prefixes and positions.

    The logits at position t are those of token t + 1: nine positions see the prompt and the first
    eight response tokens. Half of the prefixes are from the closed form, half uniform.

    Deviation: the paper's code trains on one sampled sequence a step, with dropout.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for so small a model, and the same sums on any machine
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.default_generator.manual_seed(init_seed)
            model = _fresh(config)
            model.eval()  # no dropout; gradients flow all the same
            _train_start(model, init_seed)
            own, uniform = _start_kl(model, init_seed)
    finally:
        torch.set_num_threads(threads)
    log.info("initial policy: KL to the closed form %.2g nats a token", max(own, uniform))
    if not max(own, uniform) < _LIMIT:
        raise RuntimeError(
            f"the supervised start of task=token_bandit ended {max(own, uniform):.3g} nats a token "
            f"from the closed form; expected less than {_LIMIT}. Use model=gpt_nano"
        )
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _fresh(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _train_start(model: nn.Module, init_seed: int) -> None:
    draw = generator(init_seed, "token_bandit", "start")
    probs = reference_probs().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=_LR)
    for step in range(_STEPS):
        ids = torch.randint(ACTIONS, (_BATCH, RESPONSE_TOKENS), generator=draw)
        half = ids[: _BATCH // 2, 1:]
        sampled = torch.multinomial(probs, half.numel(), replacement=True, generator=draw)
        half.copy_(sampled.view_as(half))
        for group in optimizer.param_groups:
            group["lr"] = _LR * (1 - step / _STEPS)
        optimizer.zero_grad()
        closed_form_kl(model(input_ids=ids).logits).mean().backward()
        optimizer.step()


@torch.no_grad()
def _start_kl(model: nn.Module, init_seed: int, count: int = 200) -> tuple[float, float]:
    """Mean KL a token on held-out prefixes: the model's own samples, and uniform ones."""
    draw = generator(init_seed, "token_bandit", "start_check")
    uniform = torch.randint(ACTIONS, (count, RESPONSE_TOKENS), generator=draw)
    own = uniform[:, :1]
    while own.shape[1] < RESPONSE_TOKENS:
        probs = model(input_ids=own).logits[:, -1].softmax(-1)
        own = torch.cat([own, torch.multinomial(probs, 1, generator=draw)], 1)
    first, second = (closed_form_kl(model(input_ids=ids).logits) for ids in (own, uniform))
    return first.mean().item(), second.mean().item()


def _key(config: Any, init_seed: int) -> str:
    """Digest of what the weights of the start depend on."""
    volatile = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
    settings = {
        k: v for k, v in config.to_dict().items() if k not in volatile and not k.startswith("_")
    }
    text = json.dumps([START_VERSION, init_seed, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Cached weights; None when there are none or they are damaged."""
    from safetensors import safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            digest = (file.metadata() or {}).get("digest")
        if {name: tuple(w.shape) for name, w in weights.items()} != shapes:
            raise ValueError("other parameters than the model's")
        if digest != _digest(weights):
            raise ValueError("its digest does not match")
    except Exception as error:  # whatever is wrong with it, it can be made again
        log.warning("the cached initial policy %s is damaged (%s): made again", path, error)
        return None
    return weights


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Whole or not at all: a temporary file, then a rename. Not being able to is no error."""
    from safetensors.torch import save

    data = save(weights, metadata={"digest": _digest(weights)})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("cannot keep the initial policy in %s: %s", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
