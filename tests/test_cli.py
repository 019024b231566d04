"""The command line: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from matchtir import cli, files
from matchtir.cli import credit_options
from matchtir.credit import CreditConfig, assign_credit
from matchtir.report import environment, terminal
from matchtir.types import ToolCall, Trajectory, Turn

ROOT = Path(__file__).parents[1]

CALL = {"name": "lookup", "arguments": {"key": "a"}}
RIGHT = {
    "group": 1,
    "turns": [{"calls": [CALL]}, {"answer": "yes"}],
    "gold_calls": [CALL],
    "gold_answer": "yes",
}
WRONG = {**RIGHT, "turns": [{"calls": [{**CALL, "name": "other"}]}, {"answer": "no"}]}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table_of(text: str) -> dict[str, str]:
    """The summary's lines: label to number."""
    lines = re.findall(r"^ +(\S[a-z ]*?) {2,}([-\d.,]+)", text, re.MULTILINE)
    return {label: number.replace(",", "") for label, number in lines}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "matchtir", *args]


def environ(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    return {**kept, "PYTHONPATH": path, "TERM": "xterm-256color", **more}


# --- score --------------------------------------------------------------------------------------------


def test_score_prints_the_summary_of_hand_counted_rollouts(tmp_path: Path, capsys: Any) -> None:
    silent = [{**RIGHT, "group": 2}, {**RIGHT, "group": 2}]
    malformed = {**RIGHT, "turns": ["<tool_call>{broken</tool_call>"]}
    path = write_lines(tmp_path / "r.jsonl", [RIGHT, WRONG, malformed, *silent])
    assert cli.main(["score", path]) == cli.DONE
    captured = capsys.readouterr()
    assert captured.err == f"matchtir: {path}: recognised as jsonl\n"
    # Returns: 1 + 1, 0 + 0, 0, and twice 2.
    assert table_of(captured.out) == {
        "rollouts": "5",
        "groups": "2",
        "calls": "5",
        "matched": "3",
        "unmatched": "2",
        "malformed": "1",
        "mean return": "1.2000",
        "groups without signal": "1",
    }
    assert "settings: the paper's" in captured.out


def test_score_writes_what_assign_credit_finds(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [RIGHT, WRONG])
    out = tmp_path / "scores.jsonl"
    assert cli.main(["score", path, "-o", str(out), "--gamma", "0.5", "--penalty", "0.25"]) == cli.DONE
    first, second = records_of(out)
    credit = assign_credit([RIGHT, WRONG], CreditConfig(gamma=0.5, penalty=0.25))
    assert first["call_rewards"] == [1.0]
    assert second["call_rewards"] == [-0.25]
    assert first["matches"] == [0]
    assert second["matches"] == [None]
    assert (first["return"], second["return"]) == (2.0, -0.25)
    for b, record in enumerate((first, second)):
        assert (record["row"], record["group"], record["malformed"]) == (b, 1, 0)
        assert record["turn_advantages"] == credit.turn_advantages[b].tolist()
        assert record["trajectory_advantage"] == credit.trajectory_advantages[b]
    assert np.sign(first["trajectory_advantage"]) == 1


def test_score_sample_has_every_kind_of_failing(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "s.jsonl"
    assert cli.main(["score", "--sample", "-o", str(out)]) == cli.DONE
    table = table_of(capsys.readouterr().out)
    assert (table["rollouts"], table["groups"], table["malformed"]) == ("32", "8", "2")
    assert int(table["matched"]) + int(table["unmatched"]) == int(table["calls"])
    assert table["groups without signal"] == "1"
    assert len(records_of(out)) == 32
    assert "file" not in records_of(out)[0]


def test_score_tau_bench_scores_every_row(tau_bench_path: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "s.jsonl"
    assert cli.main(["score", str(tau_bench_path), "-o", str(out)]) == cli.DONE
    captured = capsys.readouterr()
    assert "recognised as tau-bench" in captured.err
    table = table_of(captured.out)
    assert (table["rollouts"], table["groups"], table["calls"]) == ("200", "50", "1164")
    records = records_of(out)
    assert [record["row"] for record in records] == list(range(200))
    assert sum(len(record["matches"]) for record in records) == 1164
    assert [record["group"] for record in records] == [
        r["task_id"] for r in json.loads(tau_bench_path.read_text())
    ]


def test_score_file_of_tasks_fails_in_one_line(ftrl_path: Path, capsys: Any) -> None:
    pytest.importorskip("pyarrow")
    assert cli.main(["score", str(ftrl_path)]) == cli.FAILED
    error = capsys.readouterr().err
    assert "all 200 rows: messages holds no assistant turn: this is a task, not a rollout" in error
    assert error.count("\n") == 3


def test_score_reports_broken_rows_and_scores_the_rest(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [RIGHT, "{not json", "", {"group": 1}, WRONG])
    out = tmp_path / "scores.jsonl"
    assert cli.main(["score", path, "-o", str(out)]) == cli.PARTLY
    error = capsys.readouterr().err
    assert f"{path}, line 2 (row 1): not JSON" in error
    assert f"{path}, line 4 (row 2): messages or turns" in error
    assert f"{path}: 2 broken rows are left out, 2 read" in error
    assert [record["row"] for record in records_of(out)] == [0, 3]


def test_score_strict_stops_at_the_first_broken_row(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [RIGHT, "{not json", "{nor this", WRONG])
    out = tmp_path / "scores.jsonl"
    out.write_text("old")
    assert cli.main(["score", path, "-o", str(out), "--strict"]) == cli.PARTLY
    captured = capsys.readouterr()
    assert "line 2" in captured.err
    assert "line 3" not in captured.err
    assert captured.out == ""
    assert out.read_text() == "old"
    assert cli.main(["score", str(tmp_path / "none"), path, "--strict"]) == cli.FAILED


def test_score_keeps_going_past_unreadable_files(tmp_path: Path, capsys: Any) -> None:
    good = write_lines(tmp_path / "good.jsonl", [RIGHT, WRONG])
    empty = write_lines(tmp_path / "empty.jsonl", [])
    other = write_lines(tmp_path / "other.jsonl", [{"prompt": "?"}])
    missing = str(tmp_path / "missing.jsonl")
    assert cli.main(["score", missing, empty, other, str(tmp_path), good]) == cli.PARTLY
    captured = capsys.readouterr()
    assert f"{missing}: No such file or directory" in captured.err
    assert f"{empty} is empty" in captured.err
    assert f"{other} is not recognised: its first row holds prompt" in captured.err
    assert table_of(captured.out)["rollouts"] == "2"
    assert cli.main(["score", missing, empty, other]) == cli.FAILED
    captured = capsys.readouterr()
    assert "nothing could be scored" in captured.err
    assert captured.out == ""


def test_score_several_files_keeps_their_groups_apart(tmp_path: Path, capsys: Any) -> None:
    first = write_lines(tmp_path / "a.jsonl", [RIGHT, RIGHT])
    second = write_lines(tmp_path / "b.jsonl", [WRONG, WRONG])
    out = tmp_path / "s.jsonl"
    assert cli.main(["score", first, second, "-o", str(out)]) == cli.DONE
    assert table_of(capsys.readouterr().out)["groups without signal"] == "2"
    assert [(r["file"], r["row"]) for r in records_of(out)] == [
        (first, 0),
        (first, 1),
        (second, 0),
        (second, 1),
    ]


def test_score_to_stdout_leaves_only_records_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [RIGHT, WRONG])
    done = subprocess.run(
        command("score", path, "-o", "-"), capture_output=True, check=False, text=True, env=environ()
    )
    assert done.returncode == cli.DONE
    assert [json.loads(line)["row"] for line in done.stdout.splitlines()] == [0, 1]
    assert table_of(done.stderr)["rollouts"] == "2"


def test_score_reads_standard_input() -> None:
    text = json.dumps(RIGHT) + "\n" + json.dumps(WRONG) + "\n"
    done = subprocess.run(
        command("score", "-"), input=text, capture_output=True, check=False, text=True, env=environ()
    )
    assert done.returncode == cli.DONE
    assert "<stdin>: recognised as jsonl" in done.stderr
    assert table_of(done.stdout)["rollouts"] == "2"


@pytest.mark.parametrize("group", ["g", 3, 2**70])
def test_score_parquet_agrees_with_json_lines(tmp_path: Path, group: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_lines(tmp_path / "r.jsonl", [{**row, "group": group} for row in (RIGHT, WRONG)])
    assert cli.main(["score", path, "-o", str(tmp_path / "s.jsonl")]) == cli.DONE
    assert cli.main(["score", path, "-o", str(tmp_path / "s.parquet")]) == cli.DONE
    expected = records_of(tmp_path / "s.jsonl")
    if group == 2**70:
        expected = [{**record, "group": str(group)} for record in expected]
    assert parquet.read_table(tmp_path / "s.parquet").to_pylist() == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "s.csv"], "ends in '.csv'; expected .jsonl, .ndjson, .parquet"),
        (["-o", "nowhere/s.jsonl"], "there is no folder"),
        (["-o", "r.jsonl"], "is the input"),
        (["--gamma", "2"], "gamma is 2.0"),
        (["--penalty", "nan"], "penalty is nan"),
        (["--preset", "mine"], "preset is 'mine'; expected one of paper, reference"),
        (["--reward", "toolrl", "--integration", "sum"], "integration is 'sum'"),
        (["--matching", "best"], "invalid choice: 'best'"),
        (["--format", "csv"], "invalid choice: 'csv'"),
    ],
)
def test_score_refuses_impossible_options_before_it_reads(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, options: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "r.jsonl", [RIGHT])
    assert cli.main(["score", "r.jsonl", *options]) == cli.FAILED
    captured = capsys.readouterr()
    assert reason in captured.err
    assert "recognised" not in captured.err
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_score_needs_a_file(capsys: Any) -> None:
    assert cli.main(["score"]) == cli.FAILED
    assert "no file is given" in capsys.readouterr().err
    assert cli.main([]) == cli.FAILED


def test_every_setting_has_an_option_that_reaches_the_config() -> None:
    assert list(credit_options.OPTIONS) == [field.name for field in fields(CreditConfig)]
    changed: dict[str, Any] = {
        "matching": "sinkhorn",
        "penalty": 0.5,
        "cost": "exponential",
        "reg": 0.2,
        "tol": 1e-5,
        "max_iter": 7,
        "value_match": "normalized",
        "name_match": "casefold",
        "gamma": 0.5,
        "horizon": "user_turn",
        "integration": "mean",
        "baseline": "pooled",
        "normalize_std": False,
        "eps": 1e-3,
        "reward": "matchtir",
        "num_threads": 2,
    }
    argv = ["score", "--sample"]
    for name, value in changed.items():
        argv += [credit_options.OPTIONS[name][0], *([] if value is False else [str(value)])]
    assert credit_options.config_of(cli.parser().parse_args(argv)) == CreditConfig(**changed)
    reference = credit_options.config_of(
        cli.parser().parse_args(["score", "--preset", "reference", "--gamma", "0.5"])
    )
    assert reference == CreditConfig.preset("reference", gamma=0.5)


def test_ftrl_reward_leaves_out_rows_without_sub_answers(tmp_path: Path, capsys: Any) -> None:
    messages = [
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "lookup", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "It is yes."},
    ]
    fit = {"group": 1, "messages": messages, "sub_answers": {"lookup": ["yes"]}}
    path = write_lines(tmp_path / "r.jsonl", [fit, RIGHT])
    assert cli.main(["score", path, "--reward", "ftrl"]) == cli.PARTLY
    captured = capsys.readouterr()
    assert "row 1: sub_answers is missing" in captured.err
    assert table_of(captured.out)["mean return"] == "1.0000"


def test_text_format_and_repair_reach_the_parser(tmp_path: Path, capsys: Any) -> None:
    text = '[TOOL_CALLS][{"name": "lookup", "arguments": {"key": "a"}}]'
    path = write_lines(tmp_path / "r.jsonl", [{**RIGHT, "turns": [text]}])
    assert cli.main(["score", path, "--text-format", "mistral"]) == cli.DONE
    assert table_of(capsys.readouterr().out)["matched"] == "1"
    pytest.importorskip("json_repair")
    broken = '<tool_call>{"name": "lookup", "arguments": {"key": "a"</tool_call>'
    path = write_lines(tmp_path / "r.jsonl", [{**RIGHT, "turns": [broken]}])
    for options, matched in (([], "0"), (["--repair"], "1")):
        assert cli.main(["score", path, *options]) == cli.DONE
        assert table_of(capsys.readouterr().out)["matched"] == matched


# --- signals and pipes --------------------------------------------------------------------------------


@pytest.fixture
def heed_interrupts() -> Iterator[None]:
    """A process that ignores the interrupt (nohup, a background job) hands that down to its children."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.mark.usefixtures("heed_interrupts")
def test_interrupt_exits_130_with_one_line_and_no_output(tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    with subprocess.Popen(
        command("score", "-", "-o", str(out)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(),
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write((json.dumps(RIGHT) + "\n") * 20)
        process.stdin.flush()
        assert "recognised" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == cli.INTERRUPTED
    assert (stdout, stderr) == ("", "matchtir: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_reader_that_leaves_ends_the_run_quietly(tmp_path: Path) -> None:
    sources = [str(files.sample_path())] * 40
    with subprocess.Popen(
        command("score", *sources, "-o", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["row"] == 0
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == cli.BROKEN_PIPE
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


def run_in_terminal(columns: int, *args: str, **env: str) -> str:
    """What the command shows in a terminal of this width."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(command(*args), stdout=slave, stderr=slave, stdin=slave, env=environ(**env))
    os.close(slave)
    shown = b""
    try:
        while select.select([master], [], [], 60)[0]:
            piece = os.read(master, 65536)
            if not piece:
                break
            shown += piece
    except OSError:
        pass  # Linux says so when the last process has left the terminal.
    finally:
        os.close(master)
    assert process.wait(timeout=30) == cli.DONE
    return shown.decode()


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.mark.parametrize("columns", [80, 120])
def test_explain_cuts_lines_to_the_terminal(tmp_path: Path, columns: int) -> None:
    # 22 cells, the text, and 2 more: too long for 80 columns, not for 120. A wide character takes two cells.
    call = {"name": "lookup", "arguments": {"key": "x" * 50 + "字" * 10}}
    path = write_lines(tmp_path / "r", [{**RIGHT, "turns": [{"calls": [call]}]}])
    shown = run_in_terminal(columns, "explain", path, "--row", "0")
    assert ESCAPE.search(shown)
    lines = [ESCAPE.sub("", line).rstrip() for line in shown.splitlines()]
    assert max(cell_len(line) for line in lines[1:]) <= columns
    assert any(line.endswith("…") for line in lines) == (columns == 80)


@pytest.mark.parametrize("args", [("score", "--sample"), ("explain", "--sample", "--row", "0"), ("env",)])
def test_colour_is_for_terminals_that_want_it(args: tuple[str, ...]) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
    piped = subprocess.run(command(*args), capture_output=True, check=False, text=True, env=environ())
    assert "\x1b" not in piped.stdout + piped.stderr
    assert not colour.search(run_in_terminal(100, *args, NO_COLOR="1"))


# --- explain ------------------------------------------------------------------------------------------


def test_explain_shows_each_turn_and_what_is_missing(capsys: Any) -> None:
    # Row 9 asks for both tides one day apart: the second call is right in name and harbour only.
    assert cli.main(["explain", "--sample", "--row", "10"]) == cli.DONE
    text = capsys.readouterr().out
    assert 'group "higher-tide", 4 rollouts' in text
    assert '+ call 0  tide_table {"harbour": "Vikholm", "date": "2024-09-18"}' in text
    assert '~ call 1  tide_table {"harbour": "Nesvaer", "date": "2024-09-19"}' in text
    # (1 + 2/2 + 1) / (2 + 2)
    assert "similarity 0.7500   reward 0.7500" in text
    assert "= answer  Nesvaer by 18 cm" in text
    assert "gold calls without a match: 0 of 2" in text
    # 3 of 4 words on both sides.
    assert "outcome      0.7500, F1 of the two answers" in text


def test_explain_agrees_with_the_score_file(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "s.jsonl"
    assert cli.main(["score", "--sample", "-o", str(out)]) == cli.DONE
    capsys.readouterr()
    for record in records_of(out):
        assert cli.main(["explain", "--sample", "--row", str(record["row"])]) == cli.DONE
        text = capsys.readouterr().out
        found = re.findall(r"^turn \d+   reward (\S+)   advantage (\S+)", text, re.MULTILINE)
        assert found == [
            (f"{reward:.4f}", f"{advantage:+.4f}")
            for reward, advantage in zip(record["turn_rewards"], record["turn_advantages"], strict=True)
        ]
        assert f"trajectory advantage {record['trajectory_advantage']:+.4f}" in text
        assert text.count("malformed: ") == record["malformed"]
        assert len(re.findall(r"^      gold \d+ ", text, re.MULTILINE)) == sum(
            match is not None for match in record["matches"]
        )


def test_explain_shows_unmatched_malformed_and_empty_turns(tmp_path: Path, capsys: Any) -> None:
    turns = [
        {"calls": [CALL, CALL]},
        "<tool_call>\n{broken</tool_call>",
        "only words",
        {"calls": [{"name": "other", "arguments": {}}]},
    ]
    gold = [CALL, {"name": "late", "arguments": {}}]
    path = write_lines(tmp_path / "r.jsonl", [{**RIGHT, "turns": turns, "gold_calls": gold, "outcome": 0.5}])
    assert cli.main(["explain", path, "--row", "0"]) == cli.DONE
    text = capsys.readouterr().out
    assert "unmatched   reward 0.0000   most like gold 0 (similarity 1.0000), which call" in text
    assert re.search(r"! call 2  \(no name\)\n      malformed: .*\n      .*\{broken", text)
    assert "- no call and no answer" in text
    assert "no gold call has this name" in text
    assert "gold calls without a match: 1 of 2\n  - gold 1  late {}" in text
    assert "outcome      0.5000, as the file says" in text


def test_explain_row_out_of_range_or_broken(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [RIGHT, "{broken", WRONG])
    for row in ("3", "-1"):
        assert cli.main(["explain", path, "--row", row]) == cli.FAILED
        assert f"--row is {row}; expected 0 to 2, the rows of {path}" in capsys.readouterr().err
    assert cli.main(["explain", path, "--row", "1"]) == cli.PARTLY
    captured = capsys.readouterr()
    assert "line 2 (row 1): not JSON" in captured.err
    assert captured.out == ""
    assert cli.main(["explain", path, "--row", "2"]) == cli.DONE
    assert "other" in capsys.readouterr().out


def test_explain_never_passes_control_codes_or_markup_on(tmp_path: Path, capsys: Any) -> None:
    nasty = "\x1b[2J\x07\n[bold red]x[/bold red] \u202e\ud800"
    row = {
        **RIGHT,
        "group": nasty,
        "turns": [{"calls": [{"name": nasty, "arguments": {nasty: nasty}}]}, {"answer": nasty}],
    }
    path = write_lines(tmp_path / "r.jsonl", [row])
    assert cli.main(["explain", path, "--row", "0"]) == cli.DONE
    text = capsys.readouterr().out
    assert r"\x1b[2J\x07\n[bold red]x[/bold red] \u202e\ud800" in text
    assert not set(text) & set("\x1b\x07\u202e\ud800")


# --- env ----------------------------------------------------------------------------------------------


def test_env_describes_the_installation_and_loads_only_backends() -> None:
    code = (
        "import sys; from matchtir import cli; code = cli.main(['env', '--json']);"
        "sys.exit(code or len({'pyarrow', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, text=True, env=environ()
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [
        "matchtir",
        "python",
        "numpy",
        "platform",
        "core",
        "backends",
        "threads",
        "sandbox",
        "packages",
    ]
    assert found["numpy"] == np.__version__
    assert found["core"]["available"] in (True, False)
    for op in found["backends"].values():  # those of tensors have none where torch is missing
        assert op["active"] in op["available"] if op["available"] else op["active"] is None
    assert 1 <= found["threads"]["usable"] <= found["threads"]["processors"]
    assert found["sandbox"]["available"] is True
    assert found["sandbox"]["safe"] is (sys.platform == "linux")
    assert found["packages"]["rich"]


def test_version_is_that_of_the_environment(capsys: Any) -> None:
    assert cli.main(["--version"]) == cli.DONE
    assert capsys.readouterr().out.strip() == f"matchtir {environment.describe()['matchtir']}"


def test_output_that_is_not_utf8_gets_escapes() -> None:
    done = subprocess.run(
        command("explain", "-", "--row", "0"),
        input=json.dumps({**RIGHT, "turns": ["<answer>café 字</answer>"]}),
        capture_output=True,
        check=False,
        text=True,
        env=environ(PYTHONIOENCODING="ascii"),
    )
    assert done.returncode == cli.DONE, done.stderr
    assert "answer       caf\\xe9 \\u5b57" in done.stdout


def test_env_says_how_to_build_a_missing_core(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(environment, "_core", lambda: {"available": False, "reason": environment._BUILD_HINT})
    assert cli.main(["env"]) == cli.DONE
    text = " ".join(capsys.readouterr().out.split())
    assert "available no" in text
    assert "pip install ." in text


# --- the parts ----------------------------------------------------------------------------------------


def test_summaries_add_up() -> None:
    gold = (ToolCall("f"),)
    rollouts = [Trajectory((Turn(gold),), gold, group=group) for group in (0, 0, 1)]
    rollouts.append(Trajectory((Turn((ToolCall("g", malformed="why"),)),), gold, group=1))
    parts = [
        terminal.Summary.of(assign_credit(rollouts[:2])),
        terminal.Summary.of(assign_credit(rollouts[2:])),
    ]
    assert parts[0] == terminal.Summary(2, 1, 2, 2, 0, 2.0, 1)
    assert parts[1] == terminal.Summary(2, 1, 2, 1, 1, 1.0, 0)
    assert parts[0] + parts[1] == terminal.Summary.of(assign_credit(rollouts))
    assert terminal.Summary.of(assign_credit([])) == terminal.Summary()


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("count", [5, terminal.LONG_ROWS + 1])
def test_progress_appears_on_long_work_in_a_terminal_only(capsys: Any, is_terminal: bool, count: int) -> None:
    console = Console(stderr=True, force_terminal=is_terminal, width=80)
    seen = list(terminal.track(range(count), console, "reading [x]", lambda: (1, None)))
    assert seen == list(range(count))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("reading [x]" in captured.err) == (is_terminal and count > terminal.LONG_ROWS)
