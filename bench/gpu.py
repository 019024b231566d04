"""Time the Triton kernels: `bench/gpu.sh` sets up what is needed and runs this.

`python bench/gpu.py [--json FILE]` writes bench/results/<device>.json and a table beside it. `--smoke` runs
tiny sizes on whatever there is, to see that the answers are right. Any wrong answer stops it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cases.loss import close, eager_policy_loss
from checks import WrongAnswerError
from environment import environment
from timing import Row, Times, table, write_json
from torch import Tensor
from torch.nn import functional

from matchtir import ops

VOCABULARY = 151_936
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how large."""

    device: str
    smoke: bool

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def times(self, call: Callable[[], object]) -> Times:
        """Seconds of a call, from batches that keep a GPU busy for 20 ms or so."""
        for _ in range(1 if self.smoke else 3):
            call()
        first = self._batch(call, 1)
        size = 1 if self.smoke else max(1, min(200, int(0.02 / first)))
        runs: list[float] = []
        budget = time.perf_counter() + (0.0 if self.smoke else 2.0)
        while len(runs) < (1 if self.smoke else 5) or (time.perf_counter() < budget and len(runs) < 100):
            runs.append(self._batch(call, size))
        return Times(tuple(runs))

    def _batch(self, call: Callable[[], object], size: int) -> float:
        """Seconds of a call in a batch, the device waited for before and after it."""
        self.wait()
        start = time.perf_counter()
        for _ in range(size):
            call()
        self.wait()
        return (time.perf_counter() - start) / size

    def peak(self, call: Callable[[], object], leaves: list[Tensor]) -> int | None:
        """Bytes that a call takes at its peak, the gradients of leaves included; None without a GPU."""
        if self.device != "cuda":
            return None
        for leaf in leaves:
            leaf.grad = None
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before


def copy_bandwidth(machine: Machine) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.empty(1 << (12 if machine.smoke else 30), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / machine.times(lambda: target.copy_(source)).median


def bandwidth_rows(machine: Machine) -> list[Row]:
    """Scatter and the policy loss as shares of the copy's bandwidth, from the bytes that they must move."""
    copy = copy_bandwidth(machine)
    rows = [Row("bandwidth", "copy", copy / 1e9, unit="GB/s")]
    batch, tokens, turns = (4, 256, 2) if machine.smoke else (4096, 23_000, 10)
    spans, offsets, advantages = turns_of(machine, batch, tokens, turns)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.full((batch, tokens), torch.nan, dtype=dtype, device=machine.device)

        def scatter(out: Tensor = out) -> None:
            ops.scatter_tensor(advantages, spans, offsets, out)

        scatter()
        expected = torch.zeros_like(out)
        ops.scatter_tensor(advantages, spans, offsets, expected, backend="reference")
        close(out.float(), expected.float(), 0.0, f"scattered {dtype}")
        times = machine.times(scatter)
        name = f"scatter, {batch:,} × {tokens:,} {str(dtype).removeprefix('torch.')}"
        share = out.numel() * out.element_size() / times.median / copy
        rows.append(Row("bandwidth", name, share, 0.85, ours=times.summary()))
        del out, expected, scatter
    spans, offsets, advantages = turns_of(machine, batch, tokens, 1, whole=True)
    logps = -torch.rand(batch, tokens, device=machine.device)
    old, ref = logps + far_from_the_clip(logps), logps - 0.05
    logps.requires_grad_()
    mask = torch.ones_like(old)
    dense = advantages[:, None].expand(batch, tokens).float()
    gradients = []
    for backend in (None, "eager"):
        logps.grad = None
        if backend:
            eager_policy_loss(logps, old, ref, dense, mask, 0.04).backward()
        else:
            fused_loss(logps, old, ref, advantages, spans, offsets).backward()
        gradients.append(logps.grad)
    close(*gradients, 1e-5, "gradients of the policy loss")  # type: ignore[arg-type]
    logps.grad = None
    times = machine.times(lambda: fused_loss(logps, old, ref, advantages, spans, offsets))
    # Three inputs are read and the gradient is written; the backward pass only scales it.
    share = 4 * logps.numel() * logps.element_size() / times.median / copy
    name = f"policy loss and gradient, {batch:,} × {tokens:,} float32"
    return [*rows, Row("bandwidth", name, share, 0.85, ours=times.summary())]


def far_from_the_clip(like: Tensor) -> Tensor:
    """Log ratios of which none lies where rounding decides whether it is clipped."""
    steps = torch.randint(-1, 2, like.shape, device=like.device)
    return 0.5 * steps + 0.05 * torch.rand(like.shape, device=like.device)


def turns_of(
    machine: Machine, batch: int, tokens: int, turns: int, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Spans, offsets and advantages: turns of equal length with gaps, or one that is the whole row."""
    step = tokens // turns
    starts = torch.arange(turns) * step
    ends = starts + (tokens if whole else step * 2 // 3)
    spans = torch.stack([starts, ends], 1).repeat(batch, 1).to(machine.device)
    offsets = (torch.arange(batch + 1) * turns).to(machine.device)
    generator = torch.Generator().manual_seed(0)
    return spans, offsets, torch.randn(batch * turns, generator=generator).to(machine.device)


def fused_loss(
    logps: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, spans: Tensor, offsets: Tensor
) -> Tensor:
    """Our loss with a KL term."""
    return ops.policy_loss(logps, old, advantages, spans, offsets, ref_logps=ref, beta=0.04).loss


def head_rows(machine: Machine, tokens: int, width: int) -> list[Row]:
    """Hidden states to the loss and the gradients of hidden states and weight, beside Liger and TRL's way."""
    words, dtype = (512, torch.float32) if machine.smoke else (VOCABULARY, torch.bfloat16)
    case = f"logprobs and loss, T {tokens:,}, V {words:,}, H {width:,}"
    generator = torch.Generator(machine.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=machine.device, dtype=dtype)

    hidden = normal(1, tokens, width).requires_grad_()
    weight = (normal(words, width) / width**0.5).requires_grad_()
    targets = torch.randint(words, (1, tokens), generator=generator, device=machine.device)
    with torch.no_grad():
        now = ops.logprobs(hidden, weight, targets)[0]
        old, ref = now + far_from_the_clip(now), now - 0.05
    spans, offsets, advantages = turns_of(machine, 1, tokens, 1, whole=True)

    def ours() -> Tensor:
        logps = ops.logprobs(hidden, weight, targets)[0]
        return fused_loss(logps, old, ref, advantages, spans, offsets)

    def full() -> Tensor:
        """TRL's way: logits of the rollout, the log-probability of each target, a dense loss."""
        logits = functional.linear(hidden, weight)
        chosen = logits.gather(2, targets[..., None])[..., 0].float()
        logps = chosen - torch.stack([torch.logsumexp(row.float(), -1) for row in logits])
        mask = torch.ones_like(logps)
        return eager_policy_loss(logps, old, ref, advantages[:, None].expand_as(logps), mask, 0.04)

    def liger() -> Tensor:
        kind = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss
        module = kind(beta=0.04, loss_type="grpo", compiled=not machine.smoke)
        mask = torch.ones_like(targets)
        given = {"ref_per_token_logps": ref, "old_per_token_logps": old}
        loss: Tensor = module(hidden, weight, targets, mask, advantages, **given)[0]
        return loss

    return compared(machine, case, {"ours": ours, "TRL's way": full, "Liger": liger}, [hidden, weight])


def compared(machine: Machine, case: str, sides: dict[str, Step], leaves: list[Tensor]) -> list[Row]:
    """Gradients agree; then time and peak memory of ours over each other side's."""

    def step(side: Step) -> None:
        for leaf in leaves:
            leaf.grad = None
        side().backward()

    gradients: dict[str, list[Tensor]] = {}
    times, peaks = {}, {}
    rows: list[Row] = []
    for name, side in sides.items():
        try:
            step(side)
            gradients[name] = [leaf.grad.float() for leaf in leaves]  # type: ignore[union-attr]
            for mine, theirs in zip(gradients["ours"], gradients[name], strict=True):
                close(mine, theirs, 3e-2 if leaves[0].dtype == torch.bfloat16 else 1e-4, f"{case}: {name}")
            if name != "ours":
                del gradients[name]
            times[name] = machine.times(lambda side=side: step(side))  # type: ignore[misc]
            peaks[name] = machine.peak(lambda side=side: step(side), leaves)  # type: ignore[misc]
        except WrongAnswerError:
            raise
        except Exception as error:  # a peer may be missing, of another version, or too large
            if name == "ours":
                raise
            gc.collect()
            if machine.device == "cuda":
                torch.cuda.empty_cache()
            first = (str(error).splitlines() or [""])[0]
            print(f"bench: {case}: {name}: {type(error).__name__}: {first}", file=sys.stderr)
            rows.append(Row(case, name, f"failed: {type(error).__name__}", unit=""))
            continue
        if name != "ours":
            slower = times["ours"].median / times[name].median
            sides_of = {"ours": times["ours"].summary(), "peer": times[name].summary()}
            rows.append(Row(case, f"time, of {name}", slower, 1.0, better="lower", **sides_of))  # type: ignore[arg-type]
            if peaks[name]:
                rows.append(
                    Row(case, f"peak memory, of {name}", peaks["ours"] / peaks[name], 1.0, better="lower")
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the Triton kernels, answers checked first.")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where to write (bench/results/<device>.json)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU if need be; no files")
    options = parser.parse_args()
    found = torch.cuda.is_available()
    if not found and not options.smoke:
        print("bench: torch sees no GPU; --smoke runs tiny sizes on the CPU", file=sys.stderr)
        return 1
    machine = Machine("cuda" if found else "cpu", options.smoke)
    name = torch.cuda.get_device_name() if found else "cpu"
    rows = [*environment(options.smoke), Row("environment", "device", name, unit="")]
    try:
        rows += bandwidth_rows(machine)
        shapes = [(64, 32)] if options.smoke else [(t, h) for h in (2560, 4096) for t in (8192, 23_000)]
        for tokens, width in shapes:
            rows += head_rows(machine, tokens, width)
    except WrongAnswerError as error:
        print(f"bench: wrong answer: {error}", file=sys.stderr)
        return 1
    text = table(rows, judged=not options.smoke)
    print(text)
    if not options.smoke:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        file = options.json or Path(__file__).parent / f"results/{stem}.json"
        write_json(rows, file)
        file.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
