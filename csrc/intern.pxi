# Numbers for the names, parameter names and values of tool calls; included by _core.pyx.
#
# In Cython because a training step has some 150,000 values, and the same loop in Python took four times
# as long.
from collections.abc import Mapping

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next, PyDict_SetItem
from cpython.long cimport PyLong_AsLongLong
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libcpp.algorithm cimport sort
from libcpp.utility cimport pair
from libcpp.vector cimport vector

cdef int DEEPEST = 200  # levels of nesting; each takes a C stack frame
cdef object TRUE = b"t"  # in Python True == 1, in JSON not
cdef object FALSE = b"f"


cdef int64_t number_of(dict table, object key, bint add) except? -1:
    """The number of `key`; a new one gets the next number if `add`, and else -1."""
    cdef PyObject* found = PyDict_GetItemWithError(table, key)
    if found != NULL:
        return PyLong_AsLongLong(<object>found)
    if not add:
        return -1
    cdef int64_t number = len(table)
    PyDict_SetItem(table, key, number)
    return number


cdef object fold(str text):
    return text.strip().casefold()


cdef class Interner:
    """Tables that number the names, keys and values of gold calls, and find those of predicted calls.

    What no gold call has is -1: it can equal nothing, and looking it up leaves the tables small.
    Values are equal when they are the same JSON value; with `fold_strings` strings also when they
    differ in case or surrounding space, with `fold_names` tool names when they differ in case.
    """
    cdef dict names, keys, values
    cdef bint fold_strings, fold_names

    def __init__(self, bint fold_strings, bint fold_names):
        self.names, self.keys, self.values = {}, {}, {}
        self.fold_strings, self.fold_names = fold_strings, fold_names

    cdef int64_t number(self, object value, int depth, bint add) except? -1:
        if PyUnicode_CheckExact(value) and not self.fold_strings:
            return number_of(self.values, value, add)
        return number_of(self.values, self.canonical(value, depth, add), add)

    cdef object canonical(self, object value, int depth, bint add):
        """A hashable that equals another's exactly where the JSON values are equal."""
        cdef vector[int64_t] numbers
        cdef vector[pair[int64_t, int64_t]] members
        if isinstance(value, str):
            return fold(value) if self.fold_strings else value
        if isinstance(value, bool):
            return TRUE if value else FALSE
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            return value if value == value else object()  # NaN, which is no JSON, equals nothing
        if depth >= DEEPEST:
            raise InputError(f"nested deeper than {DEEPEST} levels")
        # Composite values become their numbers' bytes behind a letter; scalars are never bytes. With a
        # -1 among the numbers the bytes are those of no gold value.
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise InputError(f"{type(key).__name__} {key!r:.60} is no JSON object's key")
                members.push_back((number_of(self.keys, key, add), self.number(item, depth + 1, add)))
            sort(members.begin(), members.end())
            size = members.size() * 2 * sizeof(int64_t)
            return b"o" + PyBytes_FromStringAndSize(<const char*>members.data(), size)
        if isinstance(value, (list, tuple)):
            for item in value:
                numbers.push_back(self.number(item, depth + 1, add))
            return b"a" + as_bytes(numbers)
        raise InputError(f"{type(value).__name__} {value!r:.60} is no JSON value")

    def intern(self, traces, bint gold):
        """Names, offsets, keys and values of the calls of all traces, each as bytes of int64.

        Gold calls are numbered, others are looked up. A malformed call has name -1 and no parameters.
        A value that is no JSON is refused in a gold call, and -1 in another.
        """
        cdef vector[int64_t] names, starts, keys, values
        cdef dict arguments
        cdef Py_ssize_t position
        cdef PyObject* key
        cdef PyObject* value
        starts.push_back(0)
        for trace, calls in enumerate(traces):
            for call in calls:
                if call.malformed is not None:
                    names.push_back(-1)
                    starts.push_back(keys.size())
                    continue
                name = call.name.casefold() if self.fold_names else call.name
                names.push_back(number_of(self.names, name, gold))
                given = call.arguments
                if type(given) is not dict and not isinstance(given, Mapping):
                    kind = type(given).__name__
                    raise InputError(
                        f"trace {trace}: arguments of call {call.name!r} are a {kind}; expected a mapping"
                    )
                arguments = given if type(given) is dict else dict(given)
                position = 0
                while PyDict_Next(arguments, &position, &key, &value):
                    keys.push_back(number_of(self.keys, <object>key, gold))
                    try:
                        values.push_back(self.number(<object>value, 0, gold))
                    except InputError as error:
                        if gold:
                            raise InputError(
                                f"gold trace {trace}: argument {<object>key!r} of call {call.name!r}: {error}"
                            ) from None
                        values.push_back(-1)
                starts.push_back(keys.size())
        return as_bytes(names), as_bytes(starts), as_bytes(keys), as_bytes(values)


cdef bytes as_bytes(vector[int64_t]& numbers):
    return PyBytes_FromStringAndSize(<const char*>numbers.data(), numbers.size() * sizeof(int64_t))
