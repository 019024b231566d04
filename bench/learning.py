"""Do policies learn more with credit by turn? Every method, from the same warm starts.

What is compared is written down here, before it is run, and does not change between runs. Each run is a
process of its own, and one JSON file when it is done: a stopped comparison goes on where it was, and
`--minutes` stops it in time. `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment

from matchtir.tasks import embedded_tasks, write_tasks
from matchtir.tasks.embedded import EmbeddedConfig

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "learning"
WORK = FOLDER.parent / "runs" / "learning"

STEPS = 100
EVERY = 20  # steps between evaluations on the 200 held-out tasks, greedy
# Of the chains right answers are rare at the start: each task is four calls, each of which needs what the one
# before returned.
CHAINS = "chains"
HOPS = (4, 4)
MIXES = ("sparse", "easy", CHAINS)
SEEDS = {
    "matchtir-km": 5,
    "grpo": 5,
}  # with a warm start of their own each; the other methods have the first three
OTHER_SEEDS = 3
# λ is the price of a call that matches nothing; methods whose reward knows no such calls have one cell.
CELLS = (
    ("matchtir-km", 0.3),
    ("grpo", None),
    ("matchtir-km-trajectory", 0.3),
    ("matchtir-km-turn", 0.3),
    ("matchtir-ot", None),
    ("ftrl", None),
    ("toolrl", None),
    ("matchtir-km", 0.0),
    ("matchtir-km-trajectory", 0.0),
    ("matchtir-km-turn", 0.0),
)
CHAINS_CELLS = CELLS[:3]
METRICS = ("solve_f1", "correct", "calls", "unanswered")
BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Run:
    """One training run of the comparison."""

    method: str
    penalty: float | None
    mix: str
    seed: int

    @property
    def name(self) -> str:
        price = "" if self.penalty is None else f"-penalty-{self.penalty:g}"
        return f"{self.method}{price}-{self.mix}-seed-{self.seed}"

    @property
    def result(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def command(self) -> list[str]:
        """The embedded default but for what is compared; the last option keeps the disk small."""
        options = {
            "config": "embedded",
            "model": warm_start_folder(self.seed),
            "method": self.method,
            **tasks_of(self.mix),
            "seed": self.seed,
            "steps": STEPS,
            "evaluation.every": EVERY,
            "output": WORK / self.name,
            "checkpoint.keep": 1,
        }
        if self.penalty is not None:
            options["credit.penalty"] = self.penalty
        return [
            sys.executable,
            "-m",
            "matchtir",
            "train",
            *(f"--{key}={value}" for key, value in options.items()),
        ]


def runs(only: Sequence[str] = ()) -> list[Run]:
    """All runs, the ones that the rest is compared with first."""
    found = [
        Run(method, penalty, mix, seed)
        for method, penalty in CELLS
        for mix in MIXES
        if mix != CHAINS or (method, penalty) in CHAINS_CELLS
        for seed in range(1, SEEDS.get(method, OTHER_SEEDS) + 1)
    ]
    return [run for run in found if not only or run.method in only]


def tasks_of(mix: str) -> dict[str, Any]:
    """The settings that name the tasks of a mix."""
    if mix != CHAINS:
        return {"data.mix": mix}
    return {"tasks": WORK / f"{mix}-train.jsonl", "eval_tasks": WORK / f"{mix}-test.jsonl"}


def write_chains() -> None:
    """The tasks of the chains, unless they are there."""
    config = EmbeddedConfig(mix={"multi_hop": 1.0}, hops=HOPS)
    WORK.mkdir(parents=True, exist_ok=True)
    for path, split in zip(tasks_of(CHAINS).values(), ("train", "test"), strict=True):
        if not path.is_file():
            write_tasks(path, embedded_tasks(config, split))


def warm_start_folder(seed: int) -> Path:
    return WORK / f"warm-start-{seed}"


def call(command: Sequence[str | Path], log: Path) -> None:
    """Run a command on one thread, its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        subprocess.run(
            command, stdout=stream, stderr=stream, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def make_warm_start(seed: int) -> None:
    """Warm start of a seed, unless it is there."""
    folder = warm_start_folder(seed)
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "matchtir", "warmstart", "-o", folder, "--seed", str(seed)]
        call(command, WORK / f"warm-start-{seed}.log")


def do(run: Run) -> None:
    """Train, and keep what came of it as one file."""
    if run.mix == CHAINS:
        write_chains()
    call(run.command(), WORK / f"{run.name}.log")
    summary = json.loads((WORK / run.name / "summary.json").read_bytes())
    points = {}
    for file in sorted((WORK / run.name / "evaluations").glob("step-*.json")):
        row = json.loads(file.read_bytes())["rows"][0]
        points[int(file.stem[5:])] = {name: row["metrics"][name]["mean"] for name in METRICS}
    result = {
        "method": run.method,
        "penalty": run.penalty,
        "mix": run.mix,
        "seed": run.seed,
        "steps": STEPS,
        "evaluations": points,
        "seconds": summary["seconds"],
        "seconds_by_phase": summary["seconds_by_phase"],
        "environment": {row.metric: row.value for row in environment(False)},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    part = run.result.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, run.result)


def compare(todo: Sequence[Run], jobs: int, minutes: float | None) -> int:
    """Do what is missing, `jobs` at a time; start nothing new after so many minutes. Returns the failures."""
    failed = 0
    end = None if minutes is None else time.monotonic() + 60 * minutes

    def in_time() -> bool:
        return end is None or time.monotonic() < end

    def each(pool: ThreadPoolExecutor, tasks: Iterator[tuple[str, Any]]) -> None:
        nonlocal failed
        live: dict[Any, str] = {}
        for name, task in tasks:
            while len(live) >= jobs:
                failed += finish(wait(live, return_when=FIRST_COMPLETED).done, live)
            if not in_time():
                break
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            live[pool.submit(task)] = name
        failed += finish(wait(live).done, live)

    missing = [run for run in todo if not run.result.is_file()]
    seeds = dict.fromkeys(run.seed for run in missing)
    with ThreadPoolExecutor(jobs) as pool:
        each(pool, ((f"warm start {seed}", lambda seed=seed: make_warm_start(seed)) for seed in seeds))
        each(pool, ((run.name, lambda run=run: do(run)) for run in missing))
    return failed


def finish(done: Any, live: dict[Any, str]) -> int:
    """Take finished tasks out; say which failed, so that the others go on, and how many."""
    failed = 0
    for future in done:
        name = live.pop(future)
        if future.exception() is not None:
            failed += 1
            print(f"{name} failed: {future.exception()}; its log is in {WORK}", file=sys.stderr, flush=True)

    return failed


def interval(values: Sequence[float]) -> str:
    """Mean over seeds, and the 95 % bootstrap interval of it."""
    array = np.array(values)
    drawn = np.random.default_rng(0).choice(array, (BOOTSTRAP, len(array))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{array.mean():.3f}" + (f" ({low:.3f} to {high:.3f})" if len(array) > 1 else "")


def _last_f1(result: Any) -> float:
    """Solve-F1 at the end of a run."""
    return float(result["evaluations"][str(STEPS)]["solve_f1"])


def table() -> str:
    """What the finished runs came to, in Markdown; differences are between runs of one warm start."""
    found = [json.loads(file.read_bytes()) for file in sorted(RESULTS.glob("*.json"))]
    steps = [step for step in (0, 20, 60, STEPS) if step <= STEPS]
    head = [
        "mix",
        "method",
        "λ",
        "seeds",
        *(f"F1, step {step}" for step in steps),
        "accuracy",
        "calls",
        "lowest F1",
        f"F1, step {STEPS}, less grpo's",
    ]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + " --- |" * len(head)]
    for mix in MIXES:
        rivals = {r["seed"]: _last_f1(r) for r in found if (r["mix"], r["method"]) == (mix, "grpo")}
        for method, penalty in CELLS:
            cell = [r for r in found if (r["mix"], r["method"], r["penalty"]) == (mix, method, penalty)]
            if not cell:
                continue
            price = "—" if penalty is None else f"{penalty:g}"
            last = [r["evaluations"][str(STEPS)] for r in cell]
            values = [mix, method, price, str(len(cell))]
            values += [interval([r["evaluations"][str(step)]["solve_f1"] for r in cell]) for step in steps]
            values += [interval([one["correct"] for one in last]), interval([one["calls"] for one in last])]
            values.append(f"{min(one['solve_f1'] for one in last):.3f}")
            less = [_last_f1(r) - rivals[r["seed"]] for r in cell if r["seed"] in rivals]
            values.append(interval(less) if less and method != "grpo" else "—")
            lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=(), metavar="METHOD", help="these methods only")
    parser.add_argument("--mix", choices=MIXES, help="this mix only")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one thread each")
    parser.add_argument("--minutes", type=float, metavar="X", help="start no run after so long")
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is done, and do nothing"
    )
    options = parser.parse_args(arguments)
    failed = 0
    if not options.table:
        todo = [run for run in runs(options.only) if options.mix in (None, run.mix)]
        failed = compare(todo, options.jobs, options.minutes)
    print(table())
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
