"""``lit-pref bench``: phases that add up, numbers that are counted right, nothing left behind."""

import time

import pytest

from lit_pref.app.bench_job import Phases

SMALL = ["objective=dpo", "data=onpolicy", "data.prompts_per_round=2", "data.batch_size=2",
         "data.responses_per_prompt=3", "+task.validation_prompts=4", "task.train_prompts=3"]  # fmt: skip


def test_a_phase_inside_another_is_taken_off_it():
    class Work:
        def outer(self):
            time.sleep(0.02)
            self.inner()

        def inner(self):
            time.sleep(0.05)

    phases, work = Phases(), Work()
    phases.wrap(work, "inner", "inner")
    phases.wrap(work, "outer", "outer")
    work.outer()
    assert phases.seconds == {}  # not counting yet
    phases.counting = True
    work.outer()
    assert 0.05 <= phases.seconds["inner"]
    assert phases.seconds["outer"] >= 0.02
    assert phases.seconds["outer"] < phases.seconds["inner"]


def test_the_table(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("bench", "steps=3", *SMALL)
    assert code == 0, err
    rows = {line[:24].strip(): line[25:] for line in out.splitlines() if line.strip()}
    assert rows["steps measured"].startswith("2 in ")
    for name in ("generate", "annotate", "forward and backward", "optimizer", "logging"):
        assert "ms a step" in rows[name]
    shares = [float(v.split(", ")[1].rstrip("%")) for k, v in rows.items()
              if "ms a step" in v and "beside" not in k]  # fmt: skip
    assert sum(shares) == pytest.approx(100, abs=0.5)
    # 90,192 parameters in float32; Adam keeps two numbers for each
    assert rows["weights"] == rows["reference"] == rows["gradients"] == "0.4 MiB"
    assert rows["optimizer state"] == "0.7 MiB"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["steps=1"], "whole number from 2"), (["objective=dop"], "there is no such option")],
)
def test_refusals(command, arguments, words):
    code, _, err = command("bench", *arguments)
    assert code == 2 and words in err
