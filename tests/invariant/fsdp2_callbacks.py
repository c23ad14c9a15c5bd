"""Callbacks of the sharded runs, found by their dotted path."""

import os
import signal

import lightning as L
import torch


class Stop(L.Callback):
    """Asks process 0 to stop after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)


class Grab(L.Callback):
    """Saves the whole gradient of every step."""

    def __init__(self, file):
        self.file, self.gradients = file, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parts = [p.grad for p in pl_module.parameters() if p.grad is not None]
        whole = [getattr(g, "full_tensor", lambda g=g: g)() for g in parts]
        self.gradients.append(torch.cat([g.flatten() for g in whole]))

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save(self.gradients, self.file)
