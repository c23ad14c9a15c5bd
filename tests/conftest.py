"""Shared fixtures: one cache for the session, one thread, quiet libraries."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import logging

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """Initial policies and converted models are made once, outside the user's own cache."""
    before = os.environ.get("LIT_PREF_CACHE")
    if before is None:
        os.environ["LIT_PREF_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield os.environ["LIT_PREF_CACHE"]
    if before is None:
        del os.environ["LIT_PREF_CACHE"]
