"""A run that was killed anywhere and resumed is bitwise the run that was not."""

import json
import random
import shutil
import zipfile

import crash_runner as crash
import pytest
import torch

SIZES = ["callbacks=minimal", "+task.validation_prompts=20", "task.train_prompts=3",
         "data.prompts_per_round=4", "data.responses_per_prompt=3", "data.batch_size=2",
         "data.reuse=2", "data.rounds=3", "data.micro_batch_tokens=30",
         "checkpoint.every_n_steps=3", "trainer.log_every_n_steps=2",
         "callbacks.evaluation.every_n_rounds=1"]  # fmt: skip
OFFLINE = [*SIZES, "data=offline", "data.prompts_per_round=4", "task.offline_prompts=8"]
RUNS = {
    "dpo": ["objective=dpo", "data=onpolicy", *SIZES],
    "reinforce": ["objective=reinforce", "objective.baseline=running_mean", "data=onpolicy",
                  "objective.kl_coef=0.05", *SIZES],
    "dpo_offline": ["objective=dpo", *OFFLINE],
    "reinforce_offline": ["objective=reinforce", "objective.baseline=running_mean",
                          "objective.importance=token", *OFFLINE],
    "mixed": ["objective=reinforce", "objective.importance=token", "data=mixed",
              "task.offline_prompts=8", "data.no_signal=refill", *SIZES],
    "one_batch": ["objective=dpo", "data=onpolicy", *SIZES, "data.batch_size=4"],
    "tr_dpo_lora": ["objective=tr_dpo", "model.lora.rank=2", *SIZES],
    "rounded": ["objective=grpo", "sampler.precision=bfloat16", "data=onpolicy", *SIZES],
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
            assert crash.start(crash.train, config(kind), made[kind]) == 0
        return made[kind]

    return get


def config(kind, *more):
    return crash.composed(*RUNS[kind], *more)


def assert_same(folder, reference):
    for name in SAME:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, reference))
    for timed in ("wall_seconds",):
        ours.pop(timed), theirs.pop(timed)
    assert ours == theirs
    assert not list(folder.rglob("*.part"))
    mine, yours = (load(f / "checkpoints" / "best.ckpt") for f in (folder, reference))
    assert mine["global_step"] == yours["global_step"]
    assert all(torch.equal(v, yours["state_dict"][k]) for k, v in mine["state_dict"].items())


def load(path):
    return torch.load(path, weights_only=True)


def killed_and_resumed(kind, folder, point, passes):
    assert crash.start(crash.train, config(kind), folder, (point, passes, crash.KILL)) == -9
    assert crash.start(crash.resume, folder) == 0


@pytest.mark.parametrize(
    ("kind", "point", "passes"),
    [
        ("dpo", "generating", 6),
        ("dpo", "training", 4),  # saved at step 3: within the second pass over a round
        ("dpo", "writing", 3),
        ("dpo", "linking", 2),
        ("dpo", "exporting", 1),
        ("dpo", "summing up", 1),
        ("dpo", "reporting", 1),
        ("reinforce", "scoring", 7),
        ("reinforce", "annotating", 5),
        ("reinforce", "training", 4),
        ("reinforce", "training", 6),  # saved at step 4: its baseline goes on
        ("dpo_offline", "training", 10),  # saved at step 9
        ("dpo_offline", "annotating", 3),
        ("dpo_offline", "writing", 4),
        ("reinforce_offline", "training", 5),
        ("ppo", "training", 6),
        ("rounded", "training", 6),  # sampled from a rounded copy that no checkpoint holds
        ("tr_dpo_lora", "training", 7),  # adapters, and a reference that has moved
        ("mixed", "generating", 8),
        ("mixed", "training", 4),  # within a pass: its stored part is in the checkpoint
    ],
)
def test_killed_at(whole, tmp_path, kind, point, passes):
    reference = whole(kind)
    killed_and_resumed(kind, tmp_path / "run", point, passes)
    assert_same(tmp_path / "run", reference)


ONCE = dict.fromkeys(("exporting", "summing up", "reporting"), 1)
OFTEN = {"generating": 12, "scoring": 12, "annotating": 5, "training": 12, "writing": 6, **ONCE}
OFTEN_OFFLINE = {"annotating": 3, "training": 12, "writing": 6, **ONCE}


@pytest.mark.parametrize("draw", range(10))
def test_killed_ten_times_at_random(whole, tmp_path, draw):
    drawn = random.Random(draw)
    kind = drawn.choice(["dpo", "reinforce", "dpo_offline", "reinforce_offline"])
    often = OFTEN_OFFLINE if kind.endswith("offline") else OFTEN
    point = drawn.choice(list(often))
    reference = whole(kind)
    killed_and_resumed(kind, tmp_path / "run", point, drawn.randint(1, often[point]))
    assert_same(tmp_path / "run", reference)


def test_killed_twice(whole, tmp_path):
    reference, folder = whole("dpo"), tmp_path / "run"
    assert crash.start(crash.train, config("dpo"), folder, ("training", 5, crash.KILL)) == -9
    assert crash.start(crash.resume, folder, (), ("generating", 2, crash.KILL)) == -9
    assert crash.start(crash.resume, folder) == 0
    assert_same(folder, reference)


@pytest.mark.parametrize(
    ("kind", "signum", "code", "point", "passes"),
    [
        ("dpo", "TERM", 143, "generating", 1),
        ("dpo", "TERM", 143, "generating", 5),
        ("dpo", "INT", 130, "training", 5),
        ("dpo", "TERM", 143, "annotating", 5),
        ("dpo_offline", "TERM", 143, "annotating", 2),
        ("one_batch", "TERM", 143, "generating", 1),
        ("one_batch", "INT", 130, "training", 2),
    ],
)
def test_signals_save_and_say_how_it_ended(whole, tmp_path, kind, signum, code, point, passes):
    reference, folder = whole(kind), tmp_path / "run"
    at = (point, passes, getattr(crash, signum))
    assert crash.start(crash.train, config(kind), folder, at) == code
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 0 < summary["steps"] < STEPS
    assert (folder / "report.html").exists()
    assert crash.start(crash.resume, folder) == 0
    assert_same(folder, reference)


@pytest.mark.parametrize(
    ("signums", "code", "steps"),
    [(("TERM",), 143, 5), (("INT", "INT"), 130, 4), (("TERM", "TERM"), 143, 4)],
)
def test_signals_from_outside_while_generating(whole, tmp_path, signums, code, steps):
    """One lets the round be made and a step be taken; two stop at once."""
    reference, folder, here = whole("dpo"), tmp_path / "run", tmp_path / "here"
    process = crash.begin(crash.train, config("dpo"), folder, ("generating", 6, here))
    crash.send(process, here, *(getattr(crash, s) for s in signums))
    assert crash.ended(process) == code
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("interrupted", steps)
    assert crash.start(crash.resume, folder) == 0
    assert_same(folder, reference)


@pytest.mark.parametrize(
    ("signum", "code", "point"),
    [("TERM", 143, "building"), ("TERM", 143, "exporting"), ("INT", 130, "reporting")],
)
def test_signals_before_and_after_training(whole, tmp_path, signum, code, point):
    reference, folder = whole("dpo"), tmp_path / "run"
    at = (point, 1, getattr(crash, signum))
    assert crash.start(crash.train, config("dpo"), folder, at) == code
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert "Traceback" not in folder.with_suffix(".log").read_text()
    assert crash.start(crash.resume, folder) == 0
    assert_same(folder, reference)


def test_a_resumed_run_stopped_before_training_keeps_its_numbers(whole, tmp_path):
    reference, folder = whole("dpo"), tmp_path / "run"
    shutil.copytree(reference, folder)
    assert crash.start(crash.resume, folder, (), ("building", 1, crash.TERM)) == 143
    summary = json.loads((folder / "summary.json").read_text())
    finished = json.loads((reference / "summary.json").read_text())
    for name in ("steps", "samples", "reward_start", "reward_final", "kl_final"):
        assert summary[name] == finished[name]


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


def test_a_new_run_in_an_old_folder_starts_anew(whole, tmp_path):
    """It was killed before its first checkpoint: those that lie there are of another run."""
    reference, folder = whole("dpo"), tmp_path / "run"
    shutil.copytree(whole("reinforce"), folder)
    killed_and_resumed("dpo", folder, "generating", 2)
    assert_same(folder, reference)


def one_bit(data, path):
    """Flip a bit of a weight: nothing that says where things are."""
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda m: m.file_size)
    data[member.header_offset + member.file_size // 2] ^= 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "one bit", "empty"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_used(whole, tmp_path, damage):
    reference, folder = whole("dpo"), tmp_path / "run"
    assert crash.start(crash.train, config("dpo"), folder, ("training", 9, crash.KILL)) == -9
    last = folder / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    if damage == "flipped":
        for i in range(len(data) // 4, 3 * len(data) // 4):
            data[i] ^= 0xFF
    if damage == "one bit":
        one_bit(data, last)
    last.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, data))
    # killed once more, in writing the next: the good one must still be there
    assert crash.start(crash.resume, folder, (), ("writing", 1, crash.KILL)) == -9
    assert crash.start(crash.resume, folder) == 0
    assert "cannot be read" in folder.with_suffix(".log").read_text()
    assert_same(folder, reference)


def test_all_checkpoints_damaged_is_refused(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"no")
    before = (folder / "summary.json").read_bytes()
    assert crash.start(crash.resume, folder) == 2
    assert (folder / "summary.json").read_bytes() == before


def test_a_longer_run_is_a_run_of_that_length(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    longer = config("dpo", "data.rounds=5")
    assert crash.start(crash.train, longer, tmp_path / "longer") == 0
    before = (folder / "summary.json").read_bytes()
    at = ("training", 6, crash.KILL)
    assert crash.start(crash.resume, folder, ("data.rounds=5",), at) == -9
    assert crash.start(crash.resume, folder) == 2  # in its fourth round, with three to do
    assert "the run is in round 4 already" in folder.with_suffix(".log").read_text()
    assert (folder / "summary.json").read_bytes() == before
    assert crash.start(crash.resume, folder, ("data.rounds=5",)) == 0
    assert_same(folder, tmp_path / "longer")


def test_lost_lines_are_said_and_counted(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole("dpo"), folder)
    (folder / "metrics.csv").unlink()
    samples = folder / "samples.jsonl"
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:7]))
    assert crash.start(crash.resume, folder, ("data.rounds=4",)) == 0
    said = folder.with_suffix(".log").read_text()
    assert "metrics.csv has lost rows: 0 of" in said
    assert "samples.jsonl has lost lines: 7 of 12 are left" in said
    assert len(samples.read_text().splitlines()) == 7 + 4
    assert crash.start(crash.resume, folder, ("data.rounds=4",)) == 0
    assert len(samples.read_text().splitlines()) == 7 + 4


def test_a_finished_run_still_has_its_metric(whole, tmp_path):
    folder, to = tmp_path / "run", tmp_path / "metric"
    shutil.copytree(whole("dpo"), folder)
    assert crash.start(crash.metric_of_resumed, folder, to) == 0
    final = json.loads((folder / "summary.json").read_text())["reward_final"]
    assert float(to.read_text()) == pytest.approx(final, rel=1e-6)


def test_more_steps_after_a_stop_within_a_pass(whole, tmp_path):
    """The short run has a last row and a validation of its own; samples and weights agree."""
    reference, folder = whole("dpo"), tmp_path / "run"
    assert crash.start(crash.train, config("dpo", "trainer.max_steps=5"), folder) == 0
    short = json.loads((folder / "summary.json").read_text())
    assert crash.start(crash.resume, folder) == 0  # nothing left to do
    again = json.loads((folder / "summary.json").read_text())
    assert again.pop("wall_seconds") > short.pop("wall_seconds")
    assert again == short and short["steps"] == 5
    assert crash.start(crash.resume, folder, ("trainer.max_steps=-1",)) == 0
    for name in ("samples.jsonl", "export/model.safetensors"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()


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
    path = whole("dpo") / "checkpoints" / "last.ckpt"
    saved = load(path)
    weights = sum(v.numel() for v in saved["state_dict"].values())
    assert weights == 94_992  # the policy alone
    # weights, two moments of Adam, and less than the reference would take for all the rest
    assert path.stat().st_size < 4 * 4 * weights
    assert saved["lit_pref"]["identity"]["objective"] == "DPO"


@pytest.mark.parametrize(("signum", "code"), [("TERM", 143), ("KILL", -9)])
def test_time_adds_up(whole, tmp_path, signum, code):
    folder = tmp_path / "run"
    at = ("training", 9, getattr(crash, signum))
    assert crash.start(crash.train, config("dpo"), folder, at) == code
    saved = load(folder / "checkpoints" / "last.ckpt")["callbacks"]
    (before,) = (v["seconds"] for k, v in saved.items() if k.startswith("Checkpoints"))
    assert crash.start(crash.resume, folder, (), ("training", 1, crash.TERM)) == 143
    between = json.loads((folder / "summary.json").read_text())["wall_seconds"]
    assert crash.start(crash.resume, folder) == 0
    after = json.loads((folder / "summary.json").read_text())["wall_seconds"]
    assert 0 < before < between < after
