"""Every objective x every data source trains, or is refused with the reason of matrix.json.

    python tests/integration/test_matrix.py      # writes matrix.json again; look at the difference

A cell that is not in matrix.json (a new objective) is expected to do what its class declares.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest

from lit_pref.app.objectives import declarations

FILE = Path(__file__).parent / "matrix.json"
KINDS = {d.name: d.kind for d in declarations()}
SOURCES = ("onpolicy", "offline", "mixed", "replay")
CELLS = [(name, source) for name in sorted(KINDS) for source in SOURCES]
STEPS = 3
COMMON = (
    "data.responses_per_prompt=4", "data.batch_size=4", "callbacks.evaluation=null",
    "+callbacks.probe._target_=matrix_probe.WeightProbe", "callbacks=minimal", "export=false",
    "trainer.log_every_n_steps=1", "seed=7",
)  # fmt: skip
SIZES = {
    "onpolicy": ("data.prompts_per_round=4", f"data.rounds={STEPS}"),
    "offline": ("task.offline_prompts=4", f"data.reuse={STEPS}"),
    "mixed": ("data.prompts_per_round=4", f"data.rounds={STEPS}", "task.offline_prompts=4"),
    "replay": ("data.path=earlier", "data.prompts_per_round=4", f"data.reuse={STEPS}"),
}


def make_samples(job, file):
    """What the replayed cells read: the samples of a run of one round."""
    sizes = ("data.prompts_per_round=8", "data.rounds=1")
    done = job("objective=sft", "data=onpolicy", *COMMON, *sizes)
    shutil.copy(done.folder / "samples.jsonl", file)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    from tests_integration_support import make_job

    folder = tmp_path_factory.mktemp("samples")
    make_samples(make_job(folder), folder / "samples.jsonl")
    return folder / "samples.jsonl"


def run_cell(job, objective, source, samples):
    """The job of one cell; ``samples`` is what replayed cells read."""
    common = [c for c in COMMON if source != "replay" or "responses" not in c]
    sizes = [s.replace("=earlier", f"={samples}") for s in SIZES[source]]
    return job(f"objective={objective}", f"data={source}", *common, *sizes)


def result(done):
    """``"ok"``, or the reason of the refusal; anything else fails here."""
    if done.outcome.exit_code == 2:
        assert done.outcome.status == "refused"
        assert done.summary["status"] == "refused"
        assert done.summary["reason"] == done.outcome.reason
        return done.outcome.reason
    assert done.outcome.exit_code == 0, done.outcome.reason
    norms = [float(row["grad_norm"]) for row in done.metrics if row.get("grad_norm")]
    assert len(norms) == STEPS
    assert all(math.isfinite(n) and n > 0 for n in norms), norms
    weights = json.loads((done.folder / "weights.json").read_text())
    assert weights["steps"] == STEPS and weights["finite"] and weights["change"] > 0, weights
    return "ok"


def committed():
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def declared(kind, source):
    """Whether the class says that it can train on this source."""
    if source == "mixed":
        return kind.needs.policy and not kind.needs.fresh
    fresh = source == "onpolicy"
    return (fresh or not kind.needs.fresh) and (kind.needs.policy or not fresh)


@pytest.mark.parametrize(("objective", "source"), CELLS)
def test_cell(job, objective, source, samples):
    found = result(run_cell(job, objective, source, samples))
    known = committed().get(objective, {}).get(source)
    if known is None:
        assert (found == "ok") == declared(KINDS[objective], source), found
    else:
        assert found == known


def test_the_committed_matrix_is_whole():
    matrix = committed()
    assert set(matrix) <= set(KINDS), "matrix.json names objectives that are gone"
    for name, row in matrix.items():
        assert set(row) == set(SOURCES)
        for source, value in row.items():
            assert (value == "ok") == declared(KINDS[name], source), (name, source)


def main():
    from tests_integration_support import make_job

    matrix = {}
    with tempfile.TemporaryDirectory() as base:
        job, samples = make_job(Path(base)), Path(base) / "samples.jsonl"
        make_samples(job, samples)
        for name, source in CELLS:
            matrix.setdefault(name, {})[source] = result(run_cell(job, name, source, samples))
    FILE.write_text(json.dumps(matrix, indent=1) + "\n")


if __name__ == "__main__":
    main()
