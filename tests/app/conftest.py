"""A short finished run on the bandit, made once."""

import logging
import shutil
import sys

import pytest


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, session_cache):
    from omegaconf import OmegaConf

    from lit_pref.app.preflight import compose_config, composing
    from lit_pref.app.run import run_job

    folder = tmp_path_factory.mktemp("runs") / "bandit"
    overrides = ["objective=dpo", "data=onpolicy", "data.rounds=3", "callbacks=minimal"]
    with composing():
        cfg = compose_config([*overrides, f"paths.run_dir={folder}"])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    outcome = run_job(cfg, folder)
    assert outcome.status == "finished"
    return folder


@pytest.fixture
def bandit_run(trained_run, tmp_path, monkeypatch):
    """A copy of the run, ``run`` in the present folder."""
    shutil.copytree(trained_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture
def command(capsys, monkeypatch):
    """Call a command as the console script does: (exit code, stdout, stderr)."""
    import importlib

    handlers = list(logging.root.handlers)

    def call(name, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["lit-pref", name, *map(str, arguments)])
        code = 0
        try:
            importlib.import_module("lit_pref.app.cli").main()
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    yield call
    logging.root.handlers[:] = handlers
