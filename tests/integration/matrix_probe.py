"""A callback that tells whether training changed the weights of the policy."""

import json
from pathlib import Path

import lightning as L
import torch


class WeightProbe(L.Callback):
    """Writes ``weights.json`` into the run's folder: the largest change of a trained weight."""

    def on_train_start(self, trainer, pl_module):
        self.before = [p.detach().clone() for p in _trained(pl_module)]

    def on_train_end(self, trainer, pl_module):
        pairs = list(zip(_trained(pl_module), self.before, strict=True))
        change = max(float((new.detach() - old).abs().max()) for new, old in pairs)
        finite = all(bool(torch.isfinite(new).all()) for new, _ in pairs)
        values = {"steps": trainer.global_step, "change": change, "finite": finite}
        (Path(trainer.default_root_dir) / "weights.json").write_text(json.dumps(values))


def _trained(module):
    return [p for p in module.parameters() if p.requires_grad]
