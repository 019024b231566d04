"""The engine of training: DeepSpeed, started and set up, also for one process on a CPU. Imported here only.

start() -> policy -> initialize(policy, config, steps) -> Engine: forward, backward, step
"""

from __future__ import annotations

import importlib
import io
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import ConfigError, InputError
from .batches import Batch
from .config import TrainConfig
from .engine_settings import engine_config, lr_factor, stage_of
from .policy import PolicyModel
from .processes import open_channel, rank, world_size

_TAG = "state"
_OURS = "matchtir"
_PREFIX = "model."


def start() -> torch.device:
    """Join the other processes, and return this one's device.

    Under torchrun or the deepspeed launcher their environment variables say which process this is; without a
    launcher it is the only one. CUDA with NCCL where there is one, else the CPU with gloo. A second call
    changes nothing.

    Raises
    ------
    ImportError
        If deepspeed is not installed.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _deepspeed()
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    # DeepSpeed reads this one itself, whoever has joined the processes.
    local = int(os.environ.setdefault("LOCAL_RANK", os.environ["RANK"] if launched else "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not cuda:
        # Else DeepSpeed compiles an all-reduce of its own: 99 s on two cores, a failure without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if not launched:
            # Without a port, and without variables that programs started from here would take for their own.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        open_channel()
    return device


class Engine:
    """The policy inside of DeepSpeed. Made by :func:`initialize`.

    Attributes
    ----------
    policy : PolicyModel
        Its weights are this process's share under ZeRO-3, see :func:`gathered`.
    deepspeed : deepspeed.DeepSpeedEngine
    device : torch.device
    grad_norm : float
        Of the last step, before it was scaled down; not finite if the step was left out.
    """

    def __init__(self, wrapped: Any, max_grad_norm: float, stage: int) -> None:
        self.deepspeed = wrapped
        self.policy: PolicyModel = wrapped.module
        self.device = torch.device(wrapped.device)
        self.grad_norm = 0.0
        self.stage = stage
        self._max_grad_norm = max_grad_norm

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self.deepspeed.get_lr()[0])

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """As :meth:`PolicyModel.forward`. On all processes together, as the other methods."""
        logps, entropies = self.deepspeed(batch, temperature)
        return logps, entropies

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch's loss; `last` says that a step follows. Processes average."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self) -> bool:
        """Change the weights. False, and nothing is changed, if the gradient is not finite on any process."""
        if not _plain(self.deepspeed):
            self.deepspeed.step()
            self.grad_norm = float(self.deepspeed.get_global_grad_norm())
            return bool(self.deepspeed.was_step_applied())
        # Here DeepSpeed steps whatever the gradient, which every process has whole.
        trained = [p for p in self.policy.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, self._max_grad_norm or math.inf)
        self.grad_norm = float(norm)
        if not math.isfinite(self.grad_norm):
            self.deepspeed.zero_grad()
            return False
        self.deepspeed.step()
        return True


def initialize(policy: PolicyModel, config: TrainConfig, total_optimizer_steps: int) -> Engine:
    """Hand the policy to `deepspeed.initialize`, with AdamW and the schedule of the learning rate.

    Parameters
    ----------
    policy : PolicyModel
        On any device; what requires no gradient is not trained. It is the engine's from now on.
    config : TrainConfig
        Its parts `deepspeed`, `update` and `policy`.
    total_optimizer_steps : int
        Where the schedule ends.

    Returns
    -------
    Engine

    Raises
    ------
    ConfigError
        If nothing of the policy is to be trained, or DeepSpeed refuses its configuration.
    ImportError
        If deepspeed is not installed.
    """
    start()
    deepspeed = _deepspeed()
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("no parameter of the policy requires a gradient; expected something to train")
    settings = engine_config(config, trained_size(policy))
    schedule = partial(lr_factor, config.update, total=total_optimizer_steps)
    try:
        wrapped, *_ = deepspeed.initialize(
            model=policy,
            optimizer=_optimizer(trained, config),
            model_parameters=trained,
            lr_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=schedule),
            config=settings,
            dist_init_required=False,
        )
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"DeepSpeed refuses its configuration: {error}") from error
    return Engine(wrapped, config.update.max_grad_norm, stage_of(config))


@contextmanager
def gathered(engine: Engine) -> Iterator[Any]:
    """The policy's language model with whole weights, in evaluation mode: for generation.

    Under ZeRO-3 all weights are on every process inside of the block, to be read only; else there is nothing
    to gather. The mode is the old one afterwards.
    """
    policy, training = engine.policy, engine.policy.training
    with ExitStack() as stack:
        if engine.stage == 3:
            stack.enter_context(_deepspeed().zero.GatheredParameters(list(policy.parameters())))
            stack.enter_context(_without_hooks(policy))
        policy.eval()
        try:
            yield policy.model
        finally:
            policy.train(training)


def full_state_dict(engine: Engine) -> dict[str, Tensor]:
    """The weights of the policy's language model under its own names, on process 0's CPU; elsewhere empty.

    All processes have to call it. Under ZeRO-3 one parameter is gathered at a time.
    """
    found: dict[str, Tensor] = {}
    module = engine.policy.model
    names: dict[int, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        whole = nullcontext()
        if hasattr(value, "ds_id") and id(value) not in names:
            whole = _deepspeed().zero.GatheredParameters([value])
        with whole:
            if rank() == 0:
                names.setdefault(id(value), value.detach().cpu().clone())
                found[name] = names[id(value)]
            else:
                names[id(value)] = value
    return found


def save_state(engine: Engine, folder: str | os.PathLike[str], client_state: Mapping[str, Any]) -> None:
    """Write weights, optimiser and schedule, and the caller's own state, for an exact continuation.

    All processes have to call it; each writes its share. `client_state` is process 0's and picklable.
    """
    # DeepSpeed puts much of its own beside it.
    state = {_OURS: dict(client_state)}
    engine.deepspeed.save_checkpoint(str(folder), tag=_TAG, client_state=state, save_latest=False)


def load_state(engine: Engine, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, into an engine of the same configuration; returns `client_state`.

    Raises
    ------
    InputError
        If the folder holds no state, or one of another number of processes, or of stage 0 and the engine is
        of another, or the other way round.
    """
    state = _state_folder(folder)
    shares = len(list(state.glob("*_optim_states.pt")))
    expected = world_size() if engine.stage else 0
    if shares != expected:
        raise InputError(
            f"{state} holds the optimiser in {shares} shares; expected {expected}, for {world_size()} "
            f"processes and ZeRO stage {engine.stage}, as when it was written (0 shares: stage 0)"
        )
    _, client_state = engine.deepspeed.load_checkpoint(str(folder), tag=_TAG)
    return dict(client_state[_OURS])


def consolidate(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The language model's weights from the shares that :func:`save_state` wrote, on the CPU.

    From stages 2 and 3 in float32, as the optimiser holds them; from stages 0 and 1 in the policy's dtype.
    Needs no engine, no GPU, and one process. The files are pickles: read none of a stranger's.

    Raises
    ------
    InputError
        If the folder holds no state.
    """
    state = _state_folder(folder)
    weights: dict[str, Tensor] = {}
    stage, whole = 3, state / "mp_rank_00_model_states.pt"
    if whole.is_file():
        saved = torch.load(whole, map_location="cpu", weights_only=False)
        weights, stage = saved["module"], saved["ds_config"]["zero_optimization"]["stage"]
    if stage >= 2:
        _deepspeed()
        zero = importlib.import_module("deepspeed.utils.zero_to_fp32")
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            weights |= zero.get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=_TAG)
    return {name.removeprefix(_PREFIX): value.detach() for name, value in weights.items()}


def _state_folder(folder: str | os.PathLike[str]) -> Path:
    """Where :func:`save_state` wrote; InputError if it did not."""
    state = Path(folder) / _TAG
    if not state.is_dir():
        raise InputError(f"{folder} holds no state of a run; expected a folder {_TAG} in it")
    return state


def shard_frozen(policy: PolicyModel, config: TrainConfig) -> Any:
    """A model that is never trained, its weights shared out as ZeRO-3 does; in the host's memory on request.

    Returns
    -------
    deepspeed.DeepSpeedEngine
        To be called as the policy is, by all processes together.
    """
    settings = engine_config(config, 0)
    settings["zero_optimization"].pop("offload_optimizer", None)
    settings["zero_optimization"].pop("offload_param", None)
    if config.deepspeed.offload_reference:
        settings["zero_optimization"]["offload_param"] = {"device": "cpu"}
    wrapped, *_ = _deepspeed().initialize(model=policy, config=settings, dist_init_required=False)
    wrapped.eval()
    return wrapped


def _deepspeed() -> Any:
    """The package, told to be quiet; ImportError with the command that installs it."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls what this torch has new names for, thousands of times.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    try:
        return importlib.import_module("deepspeed")
    except ImportError as error:
        raise ImportError('training needs the package deepspeed: pip install "matchtir[train]"') from error


def _optimizer(trained: list[Any], config: TrainConfig) -> Any:
    """AdamW: torch's, or DeepSpeed's for the host where a GPU's optimiser state is kept there."""
    update = config.update
    options = {
        "lr": update.lr,
        "betas": (update.beta1, update.beta2),
        "eps": 1e-8,
        "weight_decay": update.weight_decay,
    }
    if config.deepspeed.offload_optimizer and torch.cuda.is_available():
        return importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam(trained, **options)
    return torch.optim.AdamW(trained, **options, fused=True)


@contextmanager
def _without_hooks(module: torch.nn.Module) -> Iterator[None]:
    """No hook runs in forward passes: ZeRO-3's would let go of each module's weights behind it."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    kept = [(part, name, getattr(part, name)) for part in module.modules() for name in names]
    for part, name, _ in kept:
        setattr(part, name, OrderedDict())
    try:
        yield
    finally:
        for part, name, hooks in kept:
            setattr(part, name, hooks)


def _plain(wrapped: Any) -> bool:
    """Whether DeepSpeed uses torch's optimiser as it is: stage 0 in float32."""
    return isinstance(wrapped.optimizer, torch.optim.Optimizer)


def trained_size(policy: PolicyModel) -> int:
    """Elements of the parameters that are trained, also of those that ZeRO-3 has shared out."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in trained)
