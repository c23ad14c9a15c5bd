"""Cached log-probs are right or absent: rows, facts, damage, several processes."""

import json
import logging
import multiprocessing
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_pref.policies import FrozenReference, HFPolicy, LoRA, hf, tiny
from lit_pref.policies.reference_cache import ReferenceCache
from lit_pref.types import FlatTokens

FACTS = {"weights": "w", "precision": "32-true"}


def tokens(*responses, prompt=(1, 2, 3)):
    ids = [i for r in responses for i in r]
    return FlatTokens(
        torch.tensor(prompt), [len(prompt)], torch.tensor(ids), [len(r) for r in responses],
        [0] * len(responses),
    )  # fmt: skip


class Compute:
    """Stands for the model: minus the token id; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, part):
        pieces = part.response_ids.split(part.lengths)
        self.asked += [tuple(p.tolist()) for p in pieces]
        return -part.response_ids.float()


def look_up(cache, flat, stored=None):
    compute = Compute()
    out = cache.logps(flat, stored or [True] * flat.num_responses, compute)
    assert torch.equal(out, -flat.response_ids.float())
    return compute.asked


def files(tmp_path):
    return sorted(tmp_path.rglob("*.safetensors"))


def test_what_was_computed_once_is_read_by_another_process_of_the_same_facts(tmp_path):
    assert look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5], [6])) == [(4, 5), (6,)]
    later = ReferenceCache(tmp_path, FACTS)
    assert look_up(later, tokens([6], [7, 8], [4, 5])) == [(7, 8)]
    assert look_up(later, tokens([7, 8])) == []
    assert len(files(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_fresh_responses_go_through_the_model_as_if_there_were_no_file(tmp_path):
    """Else a repeated run would round them otherwise: what shares a forward decides that."""
    flat, stored, parts = tokens([4], [5], [6], [7]), [True, False, True, False], []

    def compute(part):
        parts.append(tuple(part.response_ids.tolist()))
        return -part.response_ids.float()

    for _ in range(2):  # nothing kept, then all that can be
        ReferenceCache(tmp_path, FACTS).logps(flat, stored, compute)
    assert parts == [(4, 6), (5, 7), (5, 7)]


def test_values_come_back_bitwise(tmp_path):
    flat = tokens([4, 5, 9], [6])
    values = torch.randn(4, generator=torch.Generator().manual_seed(0))
    ReferenceCache(tmp_path, FACTS).logps(flat, [True, True], lambda part: values)
    again = ReferenceCache(tmp_path, FACTS).logps(flat, [True, True], Compute())
    assert torch.equal(again, values)


@pytest.mark.parametrize(
    "other",
    [
        tokens([4, 5], prompt=(1, 2)),
        tokens([5], prompt=(1, 2, 3, 4)),  # the same ids, cut elsewhere
        tokens([4], prompt=(1, 2, 3)),
        tokens([5, 4]),
    ],
)
def test_other_tokens_are_other_rows(tmp_path, other):
    look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5]))
    assert len(look_up(ReferenceCache(tmp_path, FACTS), other)) == 1


def test_other_facts_are_another_cache(tmp_path):
    look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5]))
    for name in FACTS:
        assert look_up(ReferenceCache(tmp_path, {**FACTS, name: "x"}), tokens([4, 5])) == [(4, 5)]


def test_samples_of_the_policy_are_not_written(tmp_path):
    cache = ReferenceCache(tmp_path, FACTS)
    assert look_up(cache, tokens([4], [5]), [False, False]) == [(4,), (5,)]
    assert files(tmp_path) == []
    look_up(cache, tokens([4], [5]), [False, True])
    assert look_up(ReferenceCache(tmp_path, FACTS), tokens([4], [5])) == [(4,)]


def damage(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello")
    elif how == "plain":  # another program's file
        save_file({"logps": torch.zeros(3)}, path)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "text", "plain"])
def test_damaged_files_are_said_and_computed_again(tmp_path, how, caplog):
    look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5]))
    damage(files(tmp_path)[0], how)
    with caplog.at_level(logging.WARNING):
        assert look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5])) == [(4, 5)]
    assert "computed again" in caplog.text
    assert look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5])) == []  # written anew


def test_a_file_of_another_model_is_foreign(tmp_path, caplog):
    other = ReferenceCache(tmp_path, {**FACTS, "weights": "other"})
    mine = ReferenceCache(tmp_path, FACTS)
    other.logps(tokens([4, 5]), [True], lambda part: torch.tensor([9.0, 9.0]))
    mine.folder.mkdir(parents=True)
    moved = files(tmp_path)[0]
    moved.rename(mine.folder / moved.name)
    with caplog.at_level(logging.WARNING):
        assert look_up(mine, tokens([4, 5])) == [(4, 5)]
    assert "belongs to another model" in caplog.text


def test_a_row_of_the_wrong_length_is_not_used(tmp_path):
    cache = ReferenceCache(tmp_path, FACTS)
    cache.logps(tokens([4, 5]), [True], Compute())
    key = next(iter(cache._rows))
    cache._rows[key] = torch.zeros(1)
    assert look_up(cache, tokens([4, 5])) == [(4, 5)]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "reference_logps").write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        look_up(ReferenceCache(tmp_path, FACTS), tokens([4, 5]))
    assert "cannot be written" in caplog.text


def _write_many(folder, worker):
    cache = ReferenceCache(folder, FACTS)
    for n in range(20):
        look_up(cache, tokens([n + 1, worker + 1], [n + 1, 99]))


def test_several_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, w)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert not list(tmp_path.rglob("*.part"))
    whole = [tokens([n + 1, w + 1], [n + 1, 99]) for n in range(20) for w in range(3)]
    later = ReferenceCache(tmp_path, FACTS)
    assert all(look_up(later, flat) == [] for flat in whole)


def test_the_file_says_what_it_is(tmp_path):
    cache = ReferenceCache(tmp_path, FACTS)
    look_up(cache, tokens([4, 5], [6]))
    (path,) = files(tmp_path)
    assert path.parent.name == cache.fingerprint
    found = load_file(path)
    assert found["lengths"].tolist() == [2, 1]
    assert found["logps"].tolist() == [-4, -5, -6]
    size = int.from_bytes(path.read_bytes()[:8], "little")
    said = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    assert json.loads(said["facts"])["weights"] == "w"
    assert os.access(path, os.R_OK)


def test_hits_are_said_once_and_not_with_every_round(tmp_path, caplog):
    cache = ReferenceCache(tmp_path, FACTS)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            look_up(cache, tokens([4, 5]))
    assert caplog.text.count("reference log-probs: 0 of 1 stored responses") == 1
    assert caplog.text.count("reference log-probs") == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    HFPolicy(tiny()).load().save_pretrained(str(out))
    return out


def folder_of(model, root, *, precision="32-true", **options):
    reference = FrozenReference(cache_dir=root)
    reference.prepare(HFPolicy(model, **options))
    return reference.cache(precision=precision).folder


def test_a_model_with_and_without_adapters_has_one_cache(exported, tmp_path):
    once = folder_of(hf(exported), tmp_path)
    assert folder_of(hf(exported), tmp_path) == once
    pytest.importorskip("peft")
    assert folder_of(hf(exported), tmp_path, lora=LoRA(rank=2)) == once


@pytest.mark.parametrize("what", ["weight", "rotation", "dtype", "precision", "forward"])
def test_whatever_changes_log_probs_is_another_cache(exported, tmp_path, what):
    once, model = folder_of(hf(exported), tmp_path), tmp_path / "model"
    shutil.copytree(exported, model)
    options = {}
    if what == "weight":
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"][3] += 1e-6
        save_file(weights, model / "model.safetensors", {"format": "pt"})
    elif what == "rotation":  # the weights are the same, the model is another
        said = json.loads((model / "config.json").read_text())
        said["rope_parameters"]["rope_theta"] = 100.0
        (model / "config.json").write_text(json.dumps(said))
    elif what == "precision":
        options["precision"] = "bf16-mixed"
    elif what == "forward":
        options["path"] = "padded"
    found = hf(model, dtype="bfloat16") if what == "dtype" else hf(model)
    assert folder_of(found, tmp_path, **options) != once
