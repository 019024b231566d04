"""The bytes between pool, worker and child.

Request, pool to worker: ``HEADER`` (number of calls, whether they share a process, seconds each may take, of
which the first has used some already), ``LENGTH`` of each call, then the calls, each the JSON
``[source, name, arguments]``. A worker sends the same to its reserve.

Answer, worker to pool: one byte ``STARTED`` when a request was read and the first of its calls is about to
run, then for each call, in order, ``RESULT`` (status, seconds, length) and a JSON payload.

Child to worker, over a private pipe: for each call, in order, ``FRAME`` (status, length) and a payload.

A host keeps objects, each in a child of its own. Request, pool to host: ``ACT`` (what to do, number of the
object, seconds it may take, length) and a JSON payload: ``[source, name, arguments]`` to make an object,
``[name, arguments]`` to call a method, the new object's number to copy one. Answer, host to pool: ``RESULT``
and a JSON payload. Host to child, over the child's socket: ``REQUEST`` (length) and ``[name, arguments]``, or
length 0 and, as ancillary data, the channel of a copy of the child.
"""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct("<I?dd")
LENGTH = struct.Struct("<I")
RESULT = struct.Struct("<BdI")
FRAME = struct.Struct("<BI")
STARTED = b"+"

ACT = struct.Struct("<BQdI")
REQUEST = struct.Struct("<I")
MAKE, MAKE_BRANCHING, CALL, COPY, DROP = range(5)
"""What a host can be asked to do."""

OK, ERROR, TIMEOUT, MEMORY, CRASH, OUTPUT = range(6)
FROM_CHILD = (OK, ERROR, MEMORY, OUTPUT)
"""What a child may say of itself; the others are found out about it."""

ELSEWHERE = 6
"""What a child of a worker that has a reserve may say besides: that its call belongs there."""


def pack_request(calls: list[bytes], shared: bool, timeout: float, used: float = 0.0) -> bytes:
    """A request as it is sent."""
    lengths = b"".join(LENGTH.pack(len(call)) for call in calls)
    return b"".join([HEADER.pack(len(calls), shared, timeout, used), lengths, *calls])


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to a blocking descriptor."""
    while len(data) > (written := os.write(fd, data)):
        data = data[written:]
