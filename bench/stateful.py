"""Credit by turn where tools change a state and the user speaks several times: KM against outcome GRPO.

What is compared is written down here, before it is run: the embedded calendar tasks, three seeds with a warm
start each, both methods from each of them, everything else as in `--config embedded`. A held-out task is
solved if the environment's judge gives 1 to every one of its user turns, with greedy decoding. Each run is a
process of its own and one JSON file when it is done: a stopped comparison goes on where it was. `--table`
prints what is there. `--steps N --tasks N --work FOLDER` tries it out on something small, elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from learning import BOOTSTRAP, FOLDER, Run, call

RESULTS = FOLDER / "results" / "stateful"
WORK = FOLDER.parent / "runs" / "stateful"

STEPS = 100
EVERY = 20  # steps between evaluations on the 200 held-out tasks, greedy
SEEDS = (1, 2, 3)
# λ is the price of a call that matches nothing: the embedded default. GRPO's reward knows no such calls.
CELLS = (("matchtir-km", 0.3), ("grpo", None))
# A dialogue is longer than a question: 331 tokens at most, the prompt included, if nothing goes wrong.
RESPONSE_TOKENS = 500


@dataclass(frozen=True)
class Setting:
    """Where and how long; what is published has the defaults."""

    work: Path = WORK
    results: Path = RESULTS
    steps: int = STEPS
    every: int = EVERY
    tasks: int | None = None

    def warm_start(self, seed: int) -> Path:
        return self.work / f"warm-start-{seed}"

    def run(self, run: Run) -> Path:
        return self.work / run.name

    def result(self, run: Run) -> Path:
        return self.results / f"{run.name}.json"

    def command(self, run: Run) -> list[str]:
        """That of bench/learning.py; of an option that is given twice the last one counts."""
        options: dict[str, Any] = {
            "model": self.warm_start(run.seed),
            "steps": self.steps,
            "evaluation.every": self.every,
            "output": self.run(run),
            "rollout.max_response_tokens": RESPONSE_TOKENS,
        }
        if self.tasks is not None:
            options["data.eval_limit"] = self.tasks
        return [*run.command(), *(f"--{key}={value}" for key, value in options.items())]


def runs() -> list[Run]:
    """All runs, both methods of a seed one after the other."""
    return [Run(method, penalty, "calendar", seed) for seed in SEEDS for method, penalty in CELLS]


def make_warm_start(seed: int, setting: Setting) -> None:
    """Warm start of a seed, unless it is there."""
    folder = setting.warm_start(seed)
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "matchtir", "warmstart", "-o", folder, "--seed", str(seed)]
        call([*command, "--mix", "calendar"], setting.work / f"{folder.name}.log")


def solved(rollouts: Path) -> dict[str, int]:
    """Of each task of an evaluation, whether the judge gave 1 to all its user turns."""
    found = {}
    for line in rollouts.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        outcomes = [one["outcome"] for one in row["rounds"]] if "rounds" in row else [row["outcome"]]
        found[row["group"]] = int(all(outcome == 1 for outcome in outcomes))
    return found


def do(run: Run, setting: Setting) -> None:
    """Train, and keep what came of it as one file."""
    folder = setting.run(run)
    call(setting.command(run), setting.work / f"{run.name}.log")
    summary = json.loads((folder / "summary.json").read_bytes())
    points, calls = {}, {}
    for file in sorted((folder / "evaluations").glob("step-*.jsonl")):
        step = int(file.stem[5:])
        points[step] = solved(file)
        metrics = json.loads(file.with_suffix(".json").read_bytes())["rows"][0]["metrics"]
        calls[step] = metrics["calls"]["mean"]
    result = {
        "method": run.method,
        "penalty": run.penalty,
        "mix": run.mix,
        "seed": run.seed,
        "steps": setting.steps,
        "solved": points,
        "calls": calls,
        "seconds": summary["seconds"],
        "seconds_by_phase": summary["seconds_by_phase"],
        "environment": {row.metric: row.value for row in environment(False)},
    }
    setting.results.mkdir(parents=True, exist_ok=True)
    part = setting.result(run).with_suffix(".part")
    part.write_text(json.dumps(result) + "\n", encoding="utf-8")
    os.replace(part, setting.result(run))


def compare(setting: Setting, jobs: int) -> int:
    """Do what is missing, `jobs` seeds at a time. Returns the failures."""
    missing = [run for run in runs() if not setting.result(run).is_file()]

    def each(seed: int) -> Iterator[str]:
        yield f"warm start {seed}"
        make_warm_start(seed, setting)
        for run in missing:
            if run.seed == seed:
                yield run.name
                do(run, setting)

    def of_seed(seed: int) -> None:
        for name in each(seed):
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        live = [pool.submit(of_seed, seed) for seed in dict.fromkeys(run.seed for run in missing)]
    errors = [error for future in live if (error := future.exception()) is not None]
    for error in errors:
        print(f"{error}; its log is in {setting.work}", file=sys.stderr, flush=True)
    return len(errors)


def interval(values: np.ndarray) -> str:
    """Mean of values (seeds, tasks), and its 95 % bootstrap interval: seeds and tasks are both drawn anew."""
    random = np.random.default_rng(0)
    seeds, tasks = values.shape
    drawn = [
        values[random.integers(seeds, size=seeds)][:, random.integers(tasks, size=tasks)].mean()
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f}–{high:.3f})"


def table(setting: Setting) -> str:
    """What the finished runs came to, in Markdown; differences are between runs of one warm start."""
    found = {
        (run.method, run.seed): json.loads(setting.result(run).read_bytes())
        for run in runs()
        if setting.result(run).is_file()
    }
    steps = [str(step) for step in range(0, setting.steps + 1, setting.every)]
    head = ["method", "λ", "seeds", *(f"solved, step {step}" for step in steps), "calls", "less grpo's"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for method, penalty in CELLS:
        mine = {seed: result for (name, seed), result in found.items() if name == method}
        if not mine:
            continue
        values = [method, "—" if penalty is None else f"{penalty:g}", str(len(mine))]
        values += [interval(np.array([_row(result, step) for result in mine.values()])) for step in steps]
        values.append(f"{np.mean([result['calls'][steps[-1]] for result in mine.values()]):.3f}")
        pairs = [(result, found["grpo", s]) for s, result in mine.items() if ("grpo", s) in found]
        less = np.array([_row(a, steps[-1]) - _row(b, steps[-1]) for a, b in pairs])
        values.append(interval(less) if pairs and method != "grpo" else "—")
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def _row(result: dict[str, Any], step: str) -> np.ndarray:
    """Which tasks were solved at a step, in the order of their names."""
    return np.array([value for _, value in sorted(result["solved"][step].items())], dtype=float)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="seeds at a time, one thread each")
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is done, and do nothing"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="to try it out; needs --work")
    parser.add_argument("--tasks", type=int, metavar="N", help="held-out tasks, to try it out; needs --work")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="of runs and results, to try it out")
    options = parser.parse_args(arguments)
    if (options.steps or options.tasks) and options.work is None:
        parser.error("--steps and --tasks need --work: what is published has the settings of this file")
    setting = Setting()
    if options.work is not None:
        steps = options.steps or STEPS
        every = min(EVERY, steps)
        setting = Setting(options.work, options.work / "results", steps, every, options.tasks)
    failed = 0 if options.table else compare(setting, options.jobs)
    print(table(setting))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
