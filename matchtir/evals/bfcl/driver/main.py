"""The driver's beginning: takes a job from standard input, confines the process, does the job."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from . import official
from .confinement import confine_process
from .report import Down, Refusal, Report

_ACTIONS: Mapping[str, Callable[[Mapping[str, Any], Report], None]] = {
    "plan": official.plan,
    "generate": official.generate,
    "evaluate": official.evaluate,
}


def main() -> NoReturn:
    """Do the job that stands on standard input; the last event says how it ended."""
    report = Report()
    job = json.loads(sys.stdin.readline())
    missing = confine_process(job["parent"], read=job["read"], write=job["write"], connect=job["connect"])
    if missing and not job["allow_unsafe"]:
        report.leave(unsafe=missing)
    report.say(confined=missing)
    try:
        version = official.installed_version()
        if version not in job["versions"]:
            tested = ", ".join(job["versions"])
            raise Refusal(f"bfcl-eval is {version} there; matchtir was tested with {tested}")
        report.say(version=version)
        _ACTIONS[job["action"]](job, report)
    except Refusal as refusal:
        report.leave(refused=str(refusal))
    except Down as down:
        report.leave(down=str(down))
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        report.leave(broken=f"{type(error).__name__}: {error}"[:500])
    sys.stdout.flush()
    report.leave(done=True)
