"""A run that was killed anywhere and resumed is bitwise the run that was not."""

import json
import random
import shutil

import crash_runner as crash
import pytest
import torch

SIZES = ["callbacks=minimal", "task.train_prompts=3", "data.prompts_per_round=4",
         "data.responses_per_prompt=3", "data.batch_size=2", "data.reuse=2", "data.rounds=3",
         "data.micro_batch_tokens=30", "checkpoint.every_n_steps=3", "trainer.log_every_n_steps=2",
         "callbacks.evaluation.every_n_rounds=1"]  # fmt: skip
OFFLINE = [*SIZES, "data=offline", "data.prompts_per_round=4", "task.offline_prompts=8"]
RUNS = {
    "dpo": ["objective=dpo", "data=onpolicy", *SIZES],
    "reinforce": ["objective=reinforce", "objective.baseline=running_mean", "data=onpolicy",
                  "objective.kl_coef=0.05", *SIZES],
    "dpo_offline": ["objective=dpo", *OFFLINE],
    "reinforce_offline": ["objective=reinforce", "objective.baseline=running_mean",
                          "objective.importance=token", *OFFLINE],
    "ppo": ["objective=ppo", "objective.kl_coef=0.1", "objective.kl_target=1.0", *SIZES],
}  # fmt: skip
STEPS = 12
SAME = ("metrics.csv", "samples.jsonl", "validation.jsonl", "export/model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, session_cache):
    """The uninterrupted run of each kind, made when first asked for."""
    base, made = tmp_path_factory.mktemp("whole"), {}

    def get(kind):
        if kind not in made:
            made[kind] = base / kind
            assert crash.start(crash.train, RUNS[kind], made[kind]) == 0
        return made[kind]

    return get


def assert_same(folder, reference):
    for name in SAME:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, reference))
    for timed in ("wall_seconds",):
        ours.pop(timed), theirs.pop(timed)
    assert ours == theirs
    assert not list(folder.rglob("*.part"))


def killed_and_resumed(kind, folder, point, passes):
    assert crash.start(crash.train, RUNS[kind], folder, (point, passes, crash.KILL)) == -9
    assert crash.start(crash.resume, folder) == 0


@pytest.mark.parametrize(
    ("kind", "point", "passes"),
    [
        ("dpo", "generating", 6),
        ("dpo", "training", 7),
        ("dpo", "writing", 3),
        ("dpo", "closing", 1),
        ("reinforce", "scoring", 7),
        ("reinforce", "annotating", 5),
        ("reinforce", "training", 11),
        ("dpo_offline", "training", 8),
        ("dpo_offline", "annotating", 3),
        ("reinforce_offline", "training", 5),
        ("ppo", "training", 6),
    ],
)
def test_killed_at(whole, tmp_path, kind, point, passes):
    reference = whole(kind)
    killed_and_resumed(kind, tmp_path / "run", point, passes)
    assert_same(tmp_path / "run", reference)


LIMITS = {"generating": 12, "scoring": 12, "annotating": 5, "training": 12, "writing": 6}


@pytest.mark.parametrize("draw", range(10))
def test_killed_ten_times_at_random(whole, tmp_path, draw):
    random_ = random.Random(draw)
    kind = random_.choice(["dpo", "reinforce", "dpo_offline"])
    points = ["annotating", "training", "writing"] if "offline" in kind else list(LIMITS)
    point = random_.choice(points)
    limit = 3 if kind == "dpo_offline" and point == "annotating" else LIMITS[point]
    reference = whole(kind)
    killed_and_resumed(kind, tmp_path / "run", point, random_.randint(1, limit))
    assert_same(tmp_path / "run", reference)


def test_killed_twice(whole, tmp_path):
    reference, folder = whole("dpo"), tmp_path / "run"
    assert crash.start(crash.train, RUNS["dpo"], folder, ("training", 5, crash.KILL)) == -9
    assert crash.start(crash.resume, folder, (), ("generating", 2, crash.KILL)) == -9
    assert crash.start(crash.resume, folder) == 0
    assert_same(folder, reference)


@pytest.mark.parametrize(
    ("signum", "code", "point"),
    [("TERM", 143, "generating"), ("INT", 130, "training"), ("TERM", 143, "annotating")],
)
def test_signals_save_and_say_how_it_ended(whole, tmp_path, signum, code, point):
    reference, folder = whole("dpo"), tmp_path / "run"
    assert crash.start(crash.train, RUNS["dpo"], folder, (point, 5, getattr(crash, signum))) == code
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 0 < summary["steps"] < STEPS
    assert (folder / "report.html").exists()
    assert crash.start(crash.resume, folder) == 0
    assert_same(folder, reference)


def test_a_finished_run_redoes_its_closing_work(whole, tmp_path):
    reference, folder = whole("dpo"), tmp_path / "run"
    shutil.copytree(reference, folder)
    for name in ("report.html", "summary.json", "export/model.safetensors"):
        (folder / name).unlink()
    assert crash.start(crash.resume, folder) == 0
    assert (folder / "report.html").exists()
    assert_same(folder, reference)


def test_without_a_checkpoint_it_starts_in_place(whole, tmp_path):
    reference, folder = whole("dpo"), tmp_path / "run"
    killed_and_resumed("dpo", folder, "generating", 2)
    assert_same(folder, reference)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_used(whole, tmp_path, damage):
    reference, folder = whole("dpo"), tmp_path / "run"
    assert crash.start(crash.train, RUNS["dpo"], folder, ("training", 9, crash.KILL)) == -9
    last = folder / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    if damage == "flipped":
        for i in range(len(data) // 4, 3 * len(data) // 4):
            data[i] ^= 0xFF
    last.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    assert crash.start(crash.resume, folder) == 0
    assert "cannot be read" in folder.with_suffix(".log").read_text()
    assert_same(folder, reference)


def test_all_checkpoints_damaged_is_refused(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"no")
    assert crash.start(crash.resume, folder) == 2


def test_a_longer_run_is_a_run_of_that_length(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    longer = [x for x in RUNS["dpo"] if not x.startswith("data.rounds")] + ["data.rounds=5"]
    assert crash.start(crash.train, longer, tmp_path / "longer") == 0
    assert crash.start(crash.resume, folder, ("data.rounds=5",)) == 0
    assert_same(folder, tmp_path / "longer")


@pytest.mark.parametrize("argument", ["objective=ipo", "optimizer.lr=1", "data.batch_size=4"])
def test_what_would_make_it_another_run_is_refused(whole, tmp_path, argument):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    assert crash.start(crash.resume, folder, (argument,)) == 2
    assert "may change only" in folder.with_suffix(".log").read_text()


def test_overrides_that_agree_are_taken(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    assert crash.start(crash.resume, folder, ("objective=dpo", "data.batch_size=2")) == 0


def test_checkpoints_hold_tensors_and_primitives_and_no_frozen_model(whole):
    saved = torch.load(whole("dpo") / "checkpoints" / "last.ckpt", weights_only=True)
    weights = sum(v.numel() for v in saved["state_dict"].values())
    assert weights == 94_992  # the policy alone
    assert saved["lit_pref"]["identity"]["objective"] == "DPO"


def test_time_adds_up(whole, tmp_path):
    folder = tmp_path / "run"
    assert crash.start(crash.train, RUNS["dpo"], folder, ("training", 5, crash.TERM)) == 143
    first = json.loads((folder / "summary.json").read_text())["wall_seconds"]
    assert crash.start(crash.resume, folder) == 0
    assert json.loads((folder / "summary.json").read_text())["wall_seconds"] > first
