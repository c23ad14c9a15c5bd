"""Recorded decoding steps, with a tape in place of a CUDA graph: it plays operations, no Python."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_forward import policy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_pref.engine import kv_cache, recorded
from lit_pref.engine.decode import decode
from lit_pref.engine.recorded import RecordedStep, recorded_steps
from lit_pref.functional.rng import uniforms
from lit_pref.sampling.native import NativeSampler
from lit_pref.types import Prompt


class Tape(TorchDispatchMode):
    """Notes operations with the tensors they read and wrote; plays them on the same memory."""

    HOST = ("_local_scalar_dense", "nonzero", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.operations = []
        self.plays = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.HOST:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    def record(self, run):
        self.operations = []
        with self:
            return run()

    def replay(self):
        self.plays += 1
        for function, args, kwargs, old in self.operations:
            new = function(*args, **kwargs)
            for a, b in zip(tree_leaves(old), tree_leaves(new), strict=True):
                if isinstance(a, torch.Tensor) and a.data_ptr() != b.data_ptr():
                    a.copy_(b)


@pytest.fixture
def tapes(monkeypatch):
    made = []

    def make():
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(recorded, "GRAPHS", {"cpu": make})
    return made


ENDS = {0, 1, 2}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def drawn(made, *, record, copies=3, tokens=30, width=None, **options):
    keys = [(p, k) for p in range(len(PROMPTS)) for k in range(copies)]
    with torch.no_grad(), recorded_steps(made, wanted=record, tokens=tokens):
        return decode(
            made, PROMPTS, copies=copies, uniforms=uniforms(keys, tokens), max_new_tokens=tokens,
            end_ids=ENDS, width=width, **options,
        )  # fmt: skip


@pytest.mark.parametrize("width", [None, 6])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma2", "gpt_oss"])
def test_replayed_steps_sample_the_same(name, width, tapes, monkeypatch):
    monkeypatch.setattr(kv_cache, "ROOM", 4)  # it grows, rows leave, prompts enter and move
    made = policy(name)
    plain = drawn(made, record=False, width=width)
    assert not tapes
    lengths = [len(row.ids) for row in plain]
    assert len(set(lengths)) > 3  # they end at different times
    found = drawn(made, record=True, width=width)
    assert [row.ids for row in found] == [row.ids for row in plain]
    for a, b in zip(found, plain, strict=True):
        assert a.behaviour_logps == pytest.approx(b.behaviour_logps, abs=1e-4)
    assert sum(t.plays for t in tapes) >= max(lengths) - 1  # every step was replayed
    assert not made.record_steps


def test_a_step_is_recorded_again_only_when_something_moves(tapes):
    made = policy("llama")
    with torch.no_grad(), recorded_steps(made, wanted=True, tokens=30):
        logits, state = made.prefill(PROMPTS, 2)
        for _ in range(5):
            logits, state = made.step(logits.argmax(-1), state)
        assert state.recorded.recordings == 1
        state = made.keep_rows(state, torch.tensor([0, 1, 2, 4, 5, 6, 7]))
        logits, state = made.step(logits[:7].argmax(-1), state)
        assert state.recorded.recordings == 1 and len(logits) == 7  # one left; all stay in place
        state = made.keep_rows(state, torch.tensor([0, 2]))
        logits, state = made.step(logits[:2].argmax(-1), state)
        assert state.recorded.recordings == 2


def test_what_a_step_returned_is_not_written_over(tapes):
    made = policy("llama")
    with torch.no_grad(), recorded_steps(made, wanted=True, tokens=30):
        logits, state = made.prefill(PROMPTS, 1)
        first, state = made.step(logits.argmax(-1), state)
        held = first.clone()
        made.step(first.argmax(-1), state)
    assert torch.equal(first, held)


class Forgetful(Tape):
    """Plays its first operations alone."""

    def replay(self):
        del self.operations[-3:]
        super().replay()


class Refusing(Tape):
    def record(self, run):
        run()
        raise RuntimeError("CUDA error: operation not permitted\nwith a long story")


@pytest.mark.parametrize(
    ("tape", "said"), [(Forgetful, "a replay differs by 1"), (Refusing, "not permitted")]
)
def test_what_does_not_replay_is_decoded_step_by_step(tape, said, tapes, monkeypatch, caplog):
    monkeypatch.setattr(recorded, "GRAPHS", {"cpu": tape})
    made = policy("llama")
    plain = drawn(made, record=False)
    with caplog.at_level(logging.INFO, "lit_pref"):
        found = drawn(made, record=True)
        again = drawn(made, record=True)  # not tried a second time
    assert [row.ids for row in found] == [row.ids for row in again] == [row.ids for row in plain]
    lines = [r.getMessage() for r in caplog.records if "not recorded" in r.getMessage()]
    assert len(lines) == 1 and said in lines[0] and "\n" not in lines[0]


def test_a_model_that_asks_the_device_is_not_recorded(tapes, caplog):
    made = policy("llama")

    def asks(module, inputs, output):
        output.sum().item()

    made.model.model.norm.register_forward_hook(asks)
    plain = drawn(made, record=False)
    with caplog.at_level(logging.INFO, "lit_pref"):
        found = drawn(made, record=True)
    assert [row.ids for row in found] == [row.ids for row in plain]
    assert "not permitted when stream is capturing" in caplog.text


def test_who_records(tapes):
    made = policy("llama")
    for options in ({"wanted": False, "tokens": 99}, {"wanted": True, "tokens": 3}):
        with recorded_steps(made, **options):
            assert not made.record_steps
    with recorded_steps(made, wanted=True, tokens=99):
        assert made.record_steps
    with recorded_steps(object(), wanted=True, tokens=99):
        pass  # any other policy is left as it is


@pytest.mark.parametrize("wanted", [True, False])
def test_the_sampler_records_where_it_is_wanted(wanted, tapes):
    made = policy("llama").eval()
    prompts = [Prompt(id=i, text="", ids=ids) for i, ids in enumerate(PROMPTS)]
    sampler = NativeSampler(max_new_tokens=20, cuda_graphs=wanted)
    sampler.sample(made, prompts, key=("t",), occurrences=[0] * 4, responses=2)
    assert bool(tapes) == wanted
    assert sampler.plain().cuda_graphs == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma2", "gpt_oss"])
def test_on_a_gpu(name, autocast, monkeypatch, caplog):
    monkeypatch.setattr(kv_cache, "ROOM", 4)
    made = policy(name).to("cuda")
    with (
        torch.autocast("cuda", torch.bfloat16, enabled=autocast),
        caplog.at_level(logging.INFO, "lit_pref"),
    ):
        plain = drawn(made, record=False, width=6)
        found = drawn(made, record=True, width=6)
    assert "not recorded" not in caplog.text
    same = [a.ids == b.ids for a, b in zip(found, plain, strict=True)]
    assert all(same) or (autocast and sum(same) > len(same) / 2)  # a rounding may turn a draw


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_graph_itself():
    graph = recorded.CudaGraph()
    x = torch.zeros(3, device="cuda")
    out = graph.record(lambda: x * 2 + 1)
    x.fill_(5.0)
    graph.replay()
    assert out.tolist() == [11.0] * 3


def test_a_recorded_step_holds_no_memory_of_a_finished_batch(tapes):
    import gc
    import weakref

    made = policy("llama")
    with torch.no_grad(), recorded_steps(made, wanted=True, tokens=30):
        _, state = made.prefill(PROMPTS, 2)
    assert isinstance(state.recorded, RecordedStep)
    gone = weakref.ref(state)
    gc.disable()
    try:
        del state
        assert gone() is None  # no cycle keeps it
    finally:
        gc.enable()


def test_the_script_for_a_gpu_runs():
    """Of a model of two small layers, on the CPU: all of it but the tests for a GPU."""
    script = Path(__file__).parents[2] / "scripts/bench/gpu.py"
    sizes = "--layers 2 --width 64 --vocab 300 --prompts 2 --responses 2 --new 18 --rounds 1"
    done = subprocess.run(
        [sys.executable, str(script), "--device", "cpu", "--dtype", "float32", "--tests", "0",
         *sizes.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for way in ("a call per response", "one kernel", "padded", "recorded", "model.generate"):
        assert f"  {way}: " in done.stdout
