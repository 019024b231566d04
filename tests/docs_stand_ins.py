"""Stand-ins for what blocks of the documentation need: models, an endpoint, data, many GPUs, hours.

A folder of commands of the same names goes before all others on the PATH. They put a tiny model where the
page names a large one, make runs short, and hand the rest to the real command; `pip` and `make` only check
that extras and targets exist.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = ("matchtir", "torchrun", "pip", "make")
ENDPOINT = "http://127.0.0.1:8000/v1"
SHORT = {
    "steps": 2,
    "data.limit": 6,
    "data.eval_limit": 2,
    "update.prompts": 2,
    "update.group_size": 2,
    "update.minibatches": 1,
    "rollout.max_turns": 2,
    "rollout.max_response_tokens": 100,
    "rollout.tool_workers": 1,
    "policy.dtype": "float32",
    "policy.attn_implementation": "sdpa",
}


LONG_PROMPT = "--rollout.max_prompt_tokens=7000"  # the tiny model has a token for each byte


@contextmanager
def stand_ins(folder: Path, text: str) -> Iterator[dict[str, str]]:
    """Make those that the text needs in a folder; the environment in which shell blocks find them."""
    from chance_model import save_chance_model
    from openai_server import OpenAIServer, says, scripted

    made = folder / ".stand-ins"
    (made / "bin").mkdir(parents=True)
    for name in COMMANDS:
        command = made / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        command.chmod(0o755)
    if "qwen3" in text.lower():
        save_chance_model(made / "model")
    for name in {"train.parquet", "test.parquet"}.intersection(re.findall(r"\w+\.parquet", text)):
        write_task_file(folder / name)
    with OpenAIServer(scripted([says("<answer>1</answer>")])) as server:
        path = os.pathsep.join([str(made / "bin"), os.environ["PATH"]])
        given = {"STAND_IN_MODEL": str(made / "model"), "STAND_IN_URL": server.url}
        yield {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **given}


def write_task_file(path: Path) -> None:
    """Six generated tasks as parquet, with JSON in the columns that are no text."""
    import pyarrow
    from pyarrow import parquet

    from matchtir.tasks.embedded import EmbeddedConfig, embedded_tasks
    from matchtir.tasks.own import task_record

    records = [task_record(task) for task in embedded_tasks(EmbeddedConfig(), "test")[:6]]
    rows = [
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items()}
        for record in records
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def main(name: str, words: list[str]) -> None:
    """One of the commands; it goes on as the real one, or ends this process."""
    if name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
        if unknown := {word for word in words if "=" not in word} - targets:
            sys.exit(f"no target is named {', '.join(sorted(unknown))}")
        return
    if name == "pip":
        known = metadata.metadata("matchtir").get_all("Provides-Extra") or []
        asked = re.findall(r"(?:matchtir|\.)\[([\w,]+)\]", " ".join(words))
        if unknown := {extra for names in asked for extra in names.split(",")} - set(known):
            sys.exit(f"no extra is named {', '.join(sorted(unknown))}")
        return
    model = os.environ["STAND_IN_MODEL"]
    given = [model if word.startswith("Qwen/") else word for word in words]
    given = [os.environ["STAND_IN_URL"] if word == ENDPOINT else word for word in given]
    short = [f"--{key}={value}" for key, value in SHORT.items()]
    if model in given or name == "torchrun":
        short.append(LONG_PROMPT)
    if name == "torchrun":
        given[given.index("--nproc_per_node") + 1] = "2"
        begin = ["-m", "torch.distributed.run", "--standalone", *given, *short, "--model", model]
    elif given[0] == "warmstart":
        quick_warm_start(given)
        return
    else:
        more = {"train": short, "eval": ["--limit=2", "--max-turns=3"]}
        begin = ["-m", "matchtir", *given, *more.get(given[0], [])]
    os.execv(sys.executable, [sys.executable, *begin])


def quick_warm_start(words: list[str]) -> None:
    """The warm start that the words ask for, of three steps."""
    from matchtir.cli import parser
    from matchtir.train.embedded import warm_start
    from matchtir.train.embedded.warmstart import Stage

    args = parser().parse_args(words)
    stage = Stage("quick", 9.0, 3, faultless=True, settles=True, user_turns=(1, 1))
    warm_start(args.seed, args.output, mix=args.mix, stages=(stage,))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
