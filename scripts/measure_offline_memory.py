"""Memory of offline training on a synthetic file of short pairs.

    python scripts/measure_offline_memory.py 1000000 --folder /tmp/pairs

Reads (or finds tokenised) the file, trains DPO on it for some steps and prints the memory after
each stage: RssAnon is what the process holds, RssFile what the kernel has mapped and may drop.
"""

import argparse
import io
import json
import time
from pathlib import Path

import lightning as L
import torch

import lit_pref as lp
from lit_pref.policies import tiny


def memory() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    names = ("RssAnon", "RssFile", "VmHWM")
    return ", ".join(f"{name} {kib[name] // 1024} MiB" for name in names)


def write(path: Path, rows: int, *, texts: bool) -> None:
    with path.open("w") as file:
        for n in range(rows):
            words = f"say {n}", f"yes {n % 97}", f"no {n % 89}"
            names = ("prompt", "chosen", "rejected")
            if texts:
                row = dict(zip(names, words, strict=True))
            else:
                ids = [list(w.encode()) for w in words]
                row = {f"{k}_ids": i for k, i in zip(names, ids, strict=True)}
                row["chosen_ids"] = [*ids[1], 258]
                row["rejected_ids"] = [*ids[2], 258]
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("--folder", type=Path, required=True, help="for the file and the cache")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--tokenised", action="store_true", help="rows of token ids, not of text")
    parser.add_argument("--in-memory", action="store_true", help="no cache: for comparison")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"pairs_{options.rows}{'_ids' if options.tokenised else ''}.jsonl"
    if not path.exists():
        write(path, options.rows, texts=not options.tokenised)
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB, {options.rows} rows")
    spec = tiny(context_length=256)
    print(f"start: {memory()}")
    begin = time.perf_counter()
    task = lp.TextTask(
        spec.tokenizer,
        eos_ids=spec.eos_ids,
        context_length=spec.context_length,
        pairs=str(path),
        cache_dir=None if options.in_memory else str(options.folder / "cache"),
    )
    task.check()
    print(f"read: {memory()}, {time.perf_counter() - begin:.0f} s")
    data = lp.OfflineDataModule(
        task,
        sampler=lp.NativeSampler(max_new_tokens=8),
        reward=None,
        prompts_per_round=1024,
        responses_per_prompt=2,
        batch_size=64,
        rounds=max(1, options.steps // 16),
    )
    objective = lp.DPO(lp.HFPolicy(spec), reference=lp.FrozenReference(), beta=0.1)
    kwargs = data.trainer_kwargs()
    trainer = L.Trainer(
        **kwargs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(objective, datamodule=data)
    print(f"trained {trainer.global_step} steps: {memory()}")
    saved = io.BytesIO()
    torch.save(data.state_dict(), saved)
    print(f"data in a checkpoint: {len(saved.getvalue()) / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
