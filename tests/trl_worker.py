"""One process of a run of TRL with DeepSpeed ZeRO-2, with written rollouts, so that runs can be compared."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from accelerate import DistributedType, PartialState
from test_trl import pairs, script_of
from trl_runs import GROUP, Script, rows, trainer

ZERO_2 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}


def main(folder: Path, output: Path) -> None:
    """Two steps of two groups, one group's rollouts in both processes where there are two."""
    # Accelerate starts DeepSpeed for GPUs alone; this is the state that it would make, over gloo.
    world = PartialState(cpu=True).num_processes
    PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    given = pairs()[:3]
    texts = script_of(given[0]) + script_of(given[1]) + script_of(given[2])
    run = trainer(
        folder,
        rows(given),
        rollout_func=Script(texts),
        # Three groups of four in two processes: the second group is split.
        per_device_train_batch_size=3 * GROUP // world,
        deepspeed=ZERO_2,
        use_cpu=False,
        accelerator_config={"use_configured_state": True},
    )
    found: list[dict[str, Any]] = []
    score = run._generate_and_score_completions

    def keep(inputs: list[Any]) -> dict[str, Any]:
        made: dict[str, Any] = score(inputs)
        rowwise = run.accelerator.pad_across_processes(made["advantages"], dim=1)
        gathered = run.accelerator.gather(rowwise)
        logged = {k: v[-1] for k, v in run._metrics["train"].items() if k.startswith(("credit/", "rewards/"))}
        found.append({"advantages": gathered.tolist(), "logged": logged})
        return made

    run._generate_and_score_completions = keep
    run.train()
    stage = run.model_wrapped.zero_optimization_stage()
    assert stage == 2, stage
    if run.accelerator.is_main_process:
        output.write_text(json.dumps(found))
    # Left to the end of the interpreter, gloo's threads sometimes abort it.
    run.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
