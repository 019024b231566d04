"""What `import verl` registers, and what it says where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

pytest.importorskip("verl.trainer", reason='verl needs pip install "matchtir[verl]"')

from matchtir.integrations import verl as adapter


def said_by(code):
    """Output and errors of a fresh process."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_import_of_verl_registers_all():
    code = """
import verl
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
print(get_adv_estimator_fn("matchtir").__name__, get_reward_manager_cls("matchtir").__name__)
print(_agent_loop_registry["matchtir_tool_agent"]["_target_"])
"""
    out, err = said_by(code)
    assert out.split() == [
        "turn_advantages",
        "TurnRewardManager",
        "matchtir.integrations.verl_agent_loop.TurnToolAgentLoop",
    ]
    assert "not registered" not in err


def test_plugin_that_cannot_load_says_why():
    code = """
import sys
sys.modules["verl.experimental.agent_loop.tool_agent_loop"] = None
import verl
from verl.trainer.ppo import core_algos
print("matchtir" in core_algos.ADV_ESTIMATOR_REGISTRY)
"""
    out, err = said_by(code)
    assert out.split() == ["False"]
    assert "matchtir is not registered with verl: ImportError" in err
    assert "tool_agent_loop" in err
    assert 'pip install "matchtir[verl]"' in err


class Owner:
    """A class of another version."""

    def as_dict(self, mode):
        """Takes more."""


def test_other_versions_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.check_host("0.9.1")
    with pytest.warns(UserWarning, match=r"tested with verl 0\.9\.1, and this is 0\.9\.7"):
        adapter.check_host("0.9.7")
    with pytest.raises(ImportError, match=r"Owner\.run of verl 0\.9\.7 is not there; .* versions: 0\.9\.1"):
        adapter.check_host("0.9.7", [(Owner, "run", ("self",))])
    with pytest.raises(ImportError, match=r"takes \(self, mode\); expected \(self, tool\)"):
        adapter.check_host("0.9.7", [(Owner, "as_dict", ("self", "tool"))])
