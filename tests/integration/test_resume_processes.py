"""Two processes that were stopped or killed and resumed are bitwise the two that were not."""

import json

import crash_runner as crash
import pytest
from test_resume import RUNS, assert_same

TWO = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
CASES = {
    "dpo": [*RUNS["dpo"], *TWO],
    "reinforce_offline": [*RUNS["reinforce_offline"], *TWO],
    "kto": ["objective=kto", *RUNS["dpo"][1:], *TWO],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, session_cache):
    """The uninterrupted run of each kind, made when first asked for."""
    base, made = tmp_path_factory.mktemp("two"), {}

    def get(kind):
        if kind not in made:
            made[kind] = base / kind
            assert crash.start_two(crash.train, crash.composed(*CASES[kind]), made[kind]) == [0, 0]
        return made[kind]

    return get


@pytest.mark.parametrize(
    ("kind", "point", "passes", "signums", "codes"),
    [
        # before the first step, where Lightning's own handler would start a collective
        ("dpo", "generating", 1, ("TERM", "TERM"), [143, 143]),
        ("kto", "training", 5, (None, "INT"), [130, 130]),  # one was asked, all stop
        ("dpo", "scoring", 3, ("KILL", "KILL"), [-9, -9]),
        ("reinforce_offline", "training", 7, ("KILL", "KILL"), [-9, -9]),
        ("kto", "writing", 2, ("KILL", None), [-9, 1]),  # the other loses its connection
    ],
)
def test_stopped_and_resumed(whole, tmp_path, kind, point, passes, signums, codes):
    reference, folder = whole(kind), tmp_path / "run"
    at = [s and (point, passes, getattr(crash, s)) for s in signums]
    assert crash.start_two(crash.train, crash.composed(*CASES[kind]), folder, crash=at) == codes
    if codes[0] > 0:
        assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert crash.start_two(crash.resume, folder) == [0, 0]
    assert_same(folder, reference)
