"""Running whole jobs in this process; rewards that misbehave, found by their dotted path."""

import csv
import json


def make_job(base):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lit_pref.app.preflight import config_dir
    from lit_pref.app.run import run_job

    class Done:
        def __init__(self, folder, outcome):
            self.folder, self.outcome = folder, outcome

        @property
        def summary(self):
            return json.loads((self.folder / "summary.json").read_text())

        @property
        def metrics(self):
            return list(csv.DictReader((self.folder / "metrics.csv").open()))

        def lines(self, name):
            return [json.loads(x) for x in (self.folder / name).read_text().splitlines()]

    count = 0

    def run(*overrides, folder=None):
        nonlocal count
        count += 1
        folder = folder or base / f"run{count}"
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("train", overrides=[*overrides, f"paths.run_dir={folder}"])
        return Done(folder, run_job(cfg, folder))

    return run


def failing_reward(prompts, responses):
    return [1 / 0 for _ in responses]


def nan_reward(prompts, responses):
    return [float("nan") for _ in responses]


def short_reward(prompts, responses):
    return [0.0] * (len(responses) - 1)


def distinct_reward(prompts, responses):
    return [float(len(set(r))) for r in responses]


def tied_reward(prompts, responses):
    """Ties for every third prompt, so that its group makes no pair; else distinct characters."""
    return [
        0.5 if len(str(p)) % 3 == 0 else float(len(set(r)))
        for p, r in zip(prompts, responses, strict=True)
    ]
