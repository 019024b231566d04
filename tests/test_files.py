"""Rollout files in, score files out."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir import files
from matchtir.credit import assign_credit
from matchtir.errors import InputError
from matchtir.rows import json_rows
from matchtir.types import ToolCall

CALL = {"name": "lookup", "arguments": {"key": "a", "limit": 3}}
ROW: dict[str, Any] = {
    "group": "g",
    "turns": [{"calls": [CALL]}, {"calls": [], "answer": "yes"}],
    "gold_calls": [CALL],
    "gold_answer": "yes",
}
MESSAGES_ROW: dict[str, Any] = {
    "task_id": 7,
    "messages": [
        {"role": "user", "content": "Is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "lookup", "arguments": json.dumps(CALL["arguments"])},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "assistant", "content": "yes"},
    ],
    "gold_calls": [CALL],
    "gold_answer": "yes",
}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def read(path: Path | str, **options: Any) -> tuple[str, list[files.Row]]:
    with files.read_rollouts(path, **options) as rollouts:
        return rollouts.format, list(rollouts)


def call_of(row: files.Row) -> ToolCall:
    assert row.trajectory is not None, row.error
    (call,) = row.trajectory.calls
    return call


# --- reading ------------------------------------------------------------------------------------------


def test_read_jsonl_gives_trajectories_in_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.txt", [ROW, "", {**ROW, "group": 3, "outcome": 0.5}])
    format, rows = read(path)
    assert format == "jsonl"
    assert [row.row for row in rows] == [0, 1]
    first, second = (row.trajectory for row in rows)
    assert first is not None
    assert second is not None
    assert (first.group, second.group, first.outcome, second.outcome) == ("g", 3, None, 0.5)
    assert first.calls[0].arguments == CALL["arguments"]
    assert first.turns[-1].answer == "yes"


def test_read_messages_array_gives_calls_results_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([MESSAGES_ROW, MESSAGES_ROW], indent=2))
    format, rows = read(path)
    assert format == "messages"
    assert len(rows) == 2
    call = call_of(rows[1])
    assert (call.name, dict(call.arguments), call.result) == ("lookup", CALL["arguments"], "found")
    assert rows[1].trajectory is not None
    assert rows[1].trajectory.group == 7


def test_read_tau_bench_takes_gold_group_and_outcome(tmp_path: Path) -> None:
    row = {
        "task_id": 4,
        "reward": 1.0,
        "info": {"task": {"actions": [{"name": "lookup", "kwargs": {"key": "a"}}]}},
        "traj": MESSAGES_ROW["messages"],
        "trial": 2,
    }
    crashed = {"task_id": 5, "reward": 0.0, "info": {"error": "Timeout", "traceback": "…"}, "traj": []}
    for text in (json.dumps([row, crashed]), f"{json.dumps(row)}\n{json.dumps(crashed)}\n"):
        path = tmp_path / "tau"
        path.write_text(text)
        format, rows = read(path)
        assert format == "tau-bench"
        trajectory = rows[0].trajectory
        assert trajectory is not None
        assert (trajectory.group, trajectory.outcome) == (4, 1.0)
        assert [(g.name, dict(g.arguments)) for g in trajectory.gold_calls] == [("lookup", {"key": "a"})]
        assert "info.task.actions is missing" in str(rows[1].error)
        assert "Timeout" in str(rows[1].error)


def test_read_real_tau_bench_file_keeps_every_row_and_call(tau_bench_path: Path) -> None:
    format, rows = read(tau_bench_path)
    source = json.loads(tau_bench_path.read_text())
    assert format == "tau-bench"
    assert len(rows) == len(source) == 200
    total = 0
    for row, original in zip(rows, source, strict=True):
        trajectory = row.trajectory
        assert trajectory is not None
        made = [c["function"] for m in original["traj"] for c in m.get("tool_calls") or []]
        assert [c.name for c in trajectory.calls] == [c["name"] for c in made]
        assert [dict(c.arguments) for c in trajectory.calls] == [json.loads(c["arguments"]) for c in made]
        assert all(c.malformed is None for c in trajectory.calls)
        assert len(trajectory.gold_calls) == len(original["info"]["task"]["actions"])
        assert trajectory.outcome == original["reward"]
        total += len(made)
    assert total == 1164


def test_read_file_of_tasks_says_that_it_holds_no_rollouts(ftrl_path: Path) -> None:
    pytest.importorskip("pyarrow")
    format, rows = read(ftrl_path)
    assert format == "parquet"
    assert len(rows) == 200
    assert all("a task, not a rollout" in str(row.error) for row in rows)


def test_read_broken_rows_name_file_line_row_and_reason(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "r.jsonl", [ROW, "", '{"group": 1,', "[1]", {"turns": []}, {**ROW, "turns": 3}, ROW]
    )
    with path.open("ab") as stream:
        stream.write(b'{"group": "\xff"}\n')
    _, rows = read(path)
    assert [row.row for row in rows if row.error is None] == [0, 5]
    errors = {row.row: str(row.error) for row in rows if row.error}
    assert sorted(errors) == [1, 2, 3, 4, 6]
    assert errors[1].startswith(f"{path}, line 3 (row 1): not JSON: ")
    assert errors[2] == f"{path}, line 4 (row 2): the row is an array; expected an object"
    assert "group" in errors[3]
    assert "turns" in errors[4]
    assert errors[6] == f"{path}, line 8 (row 6): not UTF-8: byte 0xff at 11"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[%s, {"a": 1,]', "not JSON"),
        ("[%s, {", "not JSON"),
        ("[%s", "breaks off"),
        ("[%s %s]", "where ',' or ']' should be"),
        ("[%s, ]", "not JSON"),
        ("[%s] [%s]", "more text follows"),
    ],
)
def test_read_broken_array_keeps_the_rows_before_it(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.replace("%s", json.dumps(ROW)).encode("latin-1"))
    _, rows = read(path)
    assert rows[-1].row == len(rows) - 1
    assert reason in str(rows[-1].error)
    assert [row.error for row in rows[:-1]] == [None]


def test_read_array_with_bytes_that_are_no_utf8_loses_one_row(tmp_path: Path) -> None:
    row = json.dumps(ROW).encode()
    path = tmp_path / "r.json"
    path.write_bytes(b"[" + row + b', {"group": "\xff"}, ' + row + b"]")
    _, rows = read(path)
    assert [row.error and str(row.error) for row in rows] == [
        None,
        f"{path}, row 1: not UTF-8: byte 0xff",
        None,
    ]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_read_array_does_not_depend_on_the_size_of_pieces(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    values = [{"a": 'é€𝄞 \\ " ]['}, 12345, -0.5e-3, True, None, [], [[1], {}], "", {"b": [1.25, "x"]}]
    for indent in (None, 2):
        stream = io.BytesIO(b"\xef\xbb\xbf \n" + json.dumps(values, indent=indent).encode())
        assert [value for _, _, value in json_rows.json_array(stream, "f")] == values


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON_VALUES, max_size=6), st.booleans(), st.integers(1, 40))
def test_json_array_and_lines_give_back_any_values(values: list[Any], ascii: bool, chunk: int) -> None:
    lines = "\n".join(json.dumps(value) for value in values)
    assert [v for _, _, v in json_rows.json_lines(io.BytesIO(lines.encode()), "f")] == values
    saved, json_rows._CHUNK = json_rows._CHUNK, chunk
    try:
        text = json.dumps(values, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
        if b"\xed" not in text:
            assert [v for _, _, v in json_rows.json_array(io.BytesIO(text), "f")] == values
    finally:
        json_rows._CHUNK = saved


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"", b"[", b'{"turns": [', b"\x1f\x8b", b"\xef\xbb\xbf["]))
def test_read_any_bytes_gives_rows_or_a_clear_refusal(
    tmp_path_factory: Any, data: bytes, head: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(head + data)
    for format in (None, "jsonl", "messages", "tau-bench"):
        refusal = ""
        rows: list[files.Row] = []
        try:
            _, rows = read(path, format=format)
        except InputError as error:
            refusal = str(error)
        assert [row.row for row in rows] == list(range(len(rows)))
        assert rows or str(path) in refusal


def test_read_deeply_nested_row_is_a_broken_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [ROW, "[" * 200_000, ROW])
    _, rows = read(path)
    assert [row.error is None for row in rows] == [True, False, True]


@pytest.mark.parametrize("array", [False, True])
def test_row_that_a_small_file_unpacks_to_is_no_longer_than_it_may_be(tmp_path: Path, array: bool) -> None:
    path = tmp_path / "rows.json.gz"
    good = json.dumps(ROW)
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(f"[{good},".encode() if array else f"{good}\n".encode())
        packed.write(b'{"messages": "')
        for _ in range(400):
            packed.write(b" " * (1 << 20))
        packed.write(b'"}]')
    tracemalloc.start()
    try:
        _, (first, second) = read(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first.error is None
    assert "is longer than 64 MiB; nothing after it can be read" in str(second.error)
    assert most < 350 << 20


def test_read_gzip_equals_plain(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "r.jsonl", [ROW, MESSAGES_ROW])
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(packed) == read(plain)
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-20])
    assert "cannot be read on" in str(read(packed, format="jsonl")[1][-1].error)


def test_read_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.TextIOWrapper(io.BufferedReader(io.BytesIO(json.dumps(ROW).encode())))
    monkeypatch.setattr(sys, "stdin", text)
    with files.read_rollouts("-") as rollouts:
        (row,) = rollouts
    assert rollouts.name == "<stdin>"
    assert row.trajectory is not None
    assert not text.closed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "holds no rows"),
        (b"name,value\na,1\n", "is not recognised: none of its first 2 rows"),
        (b'{"prompt": "x", "answer": "y"}\n', "is not recognised: its first row holds prompt, answer"),
        (b"PAR1 but no more", "no readable parquet file"),
        (b"\x1f\x8bnot gzip", "no readable gzip file"),
    ],
)
def test_read_refuses_what_it_does_not_recognise(tmp_path: Path, content: bytes, reason: str) -> None:
    if b"PAR1" in content:
        pytest.importorskip("pyarrow")
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        files.read_rollouts(path)
    assert str(path) in str(caught.value)


def test_read_refuses_unknown_names(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [ROW])
    with pytest.raises(InputError, match="format is 'csv'; expected one of jsonl"):
        files.read_rollouts(path, format="csv")
    with pytest.raises(InputError, match=r"text_format is 'xml'; expected one of .*hermes"):
        files.read_rollouts(path, text_format="xml")
    with pytest.raises(FileNotFoundError):
        files.read_rollouts(tmp_path / "none.jsonl")


def test_read_streams_and_reports_progress(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [{**ROW, "note": "x" * 5000}] * 400)
    with files.read_rollouts(path) as rollouts:
        size = path.stat().st_size
        done = [rollouts.progress[0] for _ in rollouts]
        assert rollouts.progress[1] == size
    assert done[0] < size / 4
    assert done == sorted(done)
    assert done[-1] == size


def test_sample_holds_all_shapes_and_no_broken_row() -> None:
    source = [json.loads(line) for line in files.sample_path().read_text("utf-8").splitlines()]
    shapes = {row["shape"] for row in source}
    assert shapes == {"single_hop", "parallel_single_hop", "multi_hop", "parallel_multi_hop"}
    assert {"messages" in row for row in source} == {True, False}
    _, rows = read(files.sample_path())
    assert len(rows) == 32
    trajectories = [row.trajectory for row in rows if row.trajectory is not None]
    assert len(trajectories) == 32
    assert sum(call.malformed is not None for t in trajectories for call in t.calls) == 2
    groups = [trajectory.group for trajectory in trajectories]
    assert all(groups.count(group) == 4 for group in groups)


def test_documented_examples_hold(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    row, dialogue, score, *_tasks = (json.loads(block) for block in blocks)
    _, found = read(write_lines(tmp_path / "r.jsonl", [row, dialogue]))
    assert [one.error for one in found] == [None, None]
    record = sample_records()[1]
    assert list(score) == list(record)
    for name, value in score.items():
        assert record[name] == (value if isinstance(value, str) else pytest.approx(value, abs=5e-5))


# --- parquet ------------------------------------------------------------------------------------------


def test_read_parquet_json_strings_maps_and_structs_agree(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    other = {"name": "other", "arguments": {"deep": {"x": [1, None]}}}
    nested = [{**ROW, "gold_answer": None}, {**ROW, "gold_calls": [CALL, other]}]
    text = [
        {k: json.dumps(v) if k in ("turns", "gold_calls") else v for k, v in row.items()} for row in nested
    ]
    found = []
    for name, rows in (("nested", nested), ("text", text)):
        path = tmp_path / name
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        format, read_rows = read(path)
        assert format == "parquet"
        found.append([row.trajectory for row in read_rows])
    assert found[0] == found[1]
    assert found[0][1] is not None
    # The struct column has `deep` in every row; the parameter must not appear where the row had none.
    assert [dict(g.arguments) for g in found[0][1].gold_calls] == [CALL["arguments"], other["arguments"]]


def test_read_parquet_map_keeps_nulls_and_empty_arguments(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arguments = pyarrow.map_(pyarrow.string(), pyarrow.string())
    call = pyarrow.struct([("name", pyarrow.string()), ("arguments", arguments)])
    table = pyarrow.table(
        {
            "group": pyarrow.array([1]),
            "turns": pyarrow.array(["[]"]),
            "gold_calls": pyarrow.array(
                [[{"name": "a", "arguments": []}, {"name": "b", "arguments": [("x", None), ("y", "1")]}]],
                type=pyarrow.list_(call),
            ),
        }
    )
    parquet.write_table(table, tmp_path / "r")
    _, (row,) = read(tmp_path / "r")
    assert row.trajectory is not None
    assert [dict(g.arguments) for g in row.trajectory.gold_calls] == [{}, {"x": None, "y": "1"}]


def test_read_parquet_broken_row_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"group": 1, "turns": "[]"}, {"group": 1, "turns": "[nope"}, {"group": None, "turns": "[]"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r")
    _, (good, bad, ungrouped) = read(tmp_path / "r")
    assert good.error is None
    assert str(bad.error).startswith(f"{tmp_path / 'r'}, row 1: column turns holds a string: not JSON")
    assert "group" in str(ungrouped.error)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "r").write_bytes(b"PAR1")
    for action in (
        lambda: files.read_rollouts(tmp_path / "r"),
        lambda: files.write_scores(tmp_path / "out.parquet", []),
    ):
        with pytest.raises(ImportError, match=r'pip install "matchtir\[parquet\]"'):
            action()
    assert os.listdir(tmp_path) == ["r"]


# --- writing ------------------------------------------------------------------------------------------


def sample_records(file: str | None = None) -> list[dict[str, Any]]:
    _, rows = read(files.sample_path())
    trajectories = [row.trajectory for row in rows if row.trajectory is not None]
    credit = assign_credit(trajectories)
    indices, groups = [row.row for row in rows], [t.group for t in trajectories]
    return list(files.score_records(credit, indices, groups, file=file))


def test_score_records_agree_with_the_credit_they_are_of() -> None:
    _, rows = read(files.sample_path())
    trajectories = [row.trajectory for row in rows if row.trajectory is not None]
    credit = assign_credit(trajectories)
    for b, record in enumerate(sample_records()):
        assert list(record) == [
            "row",
            "group",
            "call_rewards",
            "matches",
            "turn_rewards",
            "return",
            "trajectory_advantage",
            "turn_advantages",
            "malformed",
        ]
        assert len(record["matches"]) == len(record["call_rewards"]) == len(trajectories[b].calls)
        assert [-1 if m is None else m for m in record["matches"]] == credit.matches[b].tolist()
        assert len(record["turn_rewards"]) == len(record["turn_advantages"]) == len(trajectories[b].turns)
        assert record["return"] == pytest.approx(sum(record["turn_rewards"]))


@pytest.mark.parametrize("file", [None, "a file"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_scores_round_trip(tmp_path: Path, suffix: str, file: str | None) -> None:
    records = sample_records(file)
    path = tmp_path / f"scores{suffix}"
    assert files.write_scores(path, iter(records), text_groups=True) == 32
    if suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert found == records
    assert os.listdir(tmp_path) == [path.name]


def test_parquet_groups_are_integers_where_all_are(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{**record, "group": i % 3} for i, record in enumerate(sample_records())]
    files.write_scores(tmp_path / "s.parquet", records)
    assert parquet.read_table(tmp_path / "s.parquet").to_pylist() == records
    files.write_scores(tmp_path / "s.parquet", [{**records[0], "group": "\ud800"}], text_groups=True)
    assert parquet.read_table(tmp_path / "s.parquet").column("group").to_pylist() == ["?"]


def test_write_empty_scores_is_a_whole_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert files.write_scores(tmp_path / "s.parquet", []) == 0
    assert parquet.read_table(tmp_path / "s.parquet").num_rows == 0
    assert files.write_scores(tmp_path / "s.jsonl", []) == 0
    assert (tmp_path / "s.jsonl").read_bytes() == b""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = tmp_path / f"scores{suffix}"
    path.write_text("old")
    records = sample_records()

    def failing() -> Any:
        yield from records
        raise error

    with pytest.raises(error):
        files.write_scores(path, failing(), text_groups=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_written_file_has_usual_permissions_and_follows_links(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "real.dat"
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    files.write_scores(link, [{"row": 0}])
    assert link.is_symlink()
    assert json.loads(path.read_text()) == {"row": 0}
    assert path.stat().st_mode == usual.stat().st_mode
    path.chmod(0o640)
    files.write_scores(link, [{"row": 1}])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_write_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        files.write_scores(tmp_path / "s.jsonl", [{"return": float("nan")}])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scores.csv", "ends in '.csv'; expected .jsonl"),
        ("no/scores.jsonl", "no folder"),
        ("dir.jsonl", "no ordinary"),
    ],
)
def test_check_output_refuses_before_any_work(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(InputError, match=reason):
        files.check_output(tmp_path / name)


KILLED_WRITER = """
import signal, sys, time
from matchtir import files
# A parent that ignores the interrupt (nohup, a background job) hands that down.
signal.signal(signal.SIGINT, signal.default_int_handler)
def records():
    for row in range(5000):
        yield {"row": row, "group": 1, "call_rewards": [0.5] * 50, "matches": [0] * 50, "turn_rewards": [0.5],
               "return": 0.5, "trajectory_advantage": 0.0, "turn_advantages": [0.0], "malformed": 0}
    print("halfway", flush=True)
    time.sleep(60)
files.write_scores(sys.argv[1], records())
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_writer_leaves_no_output_under_its_name(
    tmp_path: Path, suffix: str, kill: signal.Signals
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"scores{suffix}"
    command = [sys.executable, "-c", KILLED_WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        # The writer has written, and waits in the middle.
        (partial,) = os.listdir(tmp_path)
        assert partial.endswith(".tmp")
        assert (tmp_path / partial).stat().st_size > 0
        process.send_signal(kill)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert not path.exists()
    left = os.listdir(tmp_path)
    assert left == ([] if kill == signal.SIGINT else [partial])
