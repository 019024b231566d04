# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: language=c++
"""The one binding of the C++ core: checks sizes, releases the GIL, turns status codes into exceptions.

Arrays are C-contiguous; outputs are allocated by the callers in ``matchtir.ops``, who also validate
dtypes. Every size that the C++ code relies on is checked here, so that no caller can make it read
or write out of bounds.
"""
from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool as cbool

from matchtir.errors import InputError

cdef extern from *:
    """
    #define MATCHTIR_STRINGIFY_(x) #x
    #define MATCHTIR_STRINGIFY(x) MATCHTIR_STRINGIFY_(x)
    #if defined(__clang__)
    static const char* matchtir_compiler = "clang " __clang_version__;
    #elif defined(__GNUC__)
    static const char* matchtir_compiler = "gcc " __VERSION__;
    #else
    static const char* matchtir_compiler = "unknown";
    #endif
    #if defined(MATCHTIR_HAS_AVX2)
    static const bool matchtir_compiled_avx2 = true;
    #else
    static const bool matchtir_compiled_avx2 = false;
    #endif
    #if defined(MATCHTIR_SANITIZE)
    static const char* matchtir_sanitize = MATCHTIR_STRINGIFY(MATCHTIR_SANITIZE);
    #else
    static const char* matchtir_sanitize = "";
    #endif
    """
    const char* matchtir_compiler
    const char* matchtir_sanitize
    const cbool matchtir_compiled_avx2

cdef extern from "isa.hpp" namespace "matchtir" nogil:
    cdef enum class Isa:
        baseline
        avx2
    Isa active_isa()
    cbool has_avx2()
    void c_set_isa "matchtir::set_isa"(Isa)

cdef extern from "status.hpp" namespace "matchtir" nogil:
    cdef enum class Code(int32_t):
        ok
        not_finite
        out_of_range
        overlap
    cdef cppclass Status:
        Code code
        int64_t problem
        int64_t cell

cdef extern from "hungarian.hpp" namespace "matchtir" nogil:
    Status c_hungarian "matchtir::hungarian"(
        const float*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t, cbool, int, int64_t*
    ) except +
    Status c_hungarian "matchtir::hungarian"(
        const double*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t, cbool, int, int64_t*
    ) except +
    Status c_greedy "matchtir::greedy"(
        const float*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t, cbool, int, int64_t*
    ) except +
    Status c_greedy "matchtir::greedy"(
        const double*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t, cbool, int, int64_t*
    ) except +

cdef extern from "sinkhorn.hpp" namespace "matchtir" nogil:
    cdef cppclass SinkhornOptions:
        double reg
        double tolerance
        int64_t max_iterations
    Status c_sinkhorn "matchtir::sinkhorn"(
        const double*, const int64_t*, const int64_t*, const int64_t*, const double*, const int64_t*, const double*,
        const int64_t*, int64_t, const SinkhornOptions&, int, double*, int64_t*, double*
    ) except +

cdef extern from "similarity.hpp" namespace "matchtir" nogil:
    cdef cppclass Calls:
        const int64_t* name
        const int64_t* start
        const int64_t* key
        const int64_t* value
    void c_similarity "matchtir::similarity"(
        const Calls&, int64_t, const int64_t*, const Calls&, int64_t, const int64_t*, const int64_t*, const int64_t*,
        int64_t, int, double*
    ) except +

cdef extern from "scatter.hpp" namespace "matchtir" nogil:
    Status c_scatter "matchtir::scatter"(
        const void*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t, int, int, void*
    ) except +

include "intern.pxi"

ctypedef fused real:
    float
    double


cdef const int64_t* starts(const int64_t[::1] offsets, Py_ssize_t count, Py_ssize_t total, str what) except? NULL:
    """Pointer to offsets [count + 1] that rise from 0 to `total`."""
    cdef Py_ssize_t k
    cdef bint rises = offsets.shape[0] == count + 1
    if rises:
        rises = offsets[0] == 0 and offsets[count] == total
        for k in range(count):
            rises = rises and offsets[k] <= offsets[k + 1]
    if not rises:
        raise InputError(f"{what} must be {count + 1} offsets that rise from 0 to {total}")
    return &offsets[0]


cdef void check_shapes(const int64_t[::1] rows, const int64_t[::1] cols, const int64_t[::1] cells,
                       const int64_t[::1] calls, Py_ssize_t cell_total, Py_ssize_t call_total) except *:
    """Cells and calls [count + 1] are the offsets that rows and columns [count] say, up to their totals."""
    cdef Py_ssize_t b, count = rows.shape[0]
    cdef int64_t cell_count, call_count
    cdef bint fits
    if cols.shape[0] != count:
        raise InputError(f"{count} rows but {cols.shape[0]} cols; expected one of each a problem")
    if cells.shape[0] != count + 1 or cells[0] != 0 or cells[count] != cell_total:
        raise InputError(f"cells must be {count + 1} offsets that rise from 0 to {cell_total}")
    if calls.shape[0] != count + 1 or calls[0] != 0 or calls[count] != call_total:
        raise InputError(f"calls must be {count + 1} offsets that rise from 0 to {call_total}")
    for b in range(count):
        cell_count, call_count = cells[b + 1] - cells[b], calls[b + 1] - calls[b]
        # The division keeps the product from wrapping around.
        fits = rows[b] >= 0 and cols[b] >= 0 and (rows[b] == 0 or cols[b] <= cell_total // rows[b])
        if not fits or cell_count != rows[b] * cols[b] or call_count != rows[b]:
            raise InputError(
                f"problem {b} has shape ({rows[b]}, {cols[b]}) but {cell_count} cells and {call_count} rows of results"
            )


def assign(const real[::1] scores, const int64_t[::1] rows, const int64_t[::1] cols, const int64_t[::1] cells,
           const int64_t[::1] calls, bint greedy, bint partial, int threads, int64_t[::1] matches):
    """Fill `matches` with the Hungarian or the greedy matching; see ``hungarian.hpp``."""
    cdef int64_t count = rows.shape[0]
    cdef Status status
    check_shapes(rows, cols, cells, calls, scores.shape[0], matches.shape[0])
    if count == 0:
        return
    cdef const real* first_score = &scores[0] if scores.shape[0] else NULL
    cdef int64_t* first_match = &matches[0] if matches.shape[0] else NULL
    with nogil:
        if greedy:
            status = c_greedy(first_score, &rows[0], &cols[0], &cells[0], &calls[0], count, partial, threads,
                              first_match)
        else:
            status = c_hungarian(first_score, &rows[0], &cols[0], &cells[0], &calls[0], count, partial, threads,
                                 first_match)
    if status.code == Code.not_finite:
        i, j = divmod(status.cell, cols[status.problem])
        value = scores[cells[status.problem] + status.cell]
        raise InputError(
            f"scores[{status.problem}] holds {describe(value)} at ({i}, {j}); expected finite values"
        )


def sinkhorn(const double[::1] cost, const int64_t[::1] rows, const int64_t[::1] cols, const int64_t[::1] cells,
             a, const int64_t[::1] row_starts, b, const int64_t[::1] col_starts, double reg, double tol,
             int64_t max_iter, int threads, double[::1] plan, int64_t[::1] iterations, double[::1] violation):
    """Fill `plan`, `iterations` and `violation`; `a` and `b` are both arrays or both None. See ``sinkhorn.hpp``."""
    cdef int64_t count = rows.shape[0]
    cdef const double[::1] a_values, b_values
    cdef const double* a_first = NULL
    cdef const double* b_first = NULL
    cdef const int64_t* a_starts = NULL
    cdef const int64_t* b_starts = NULL
    cdef SinkhornOptions options
    cdef Status status
    check_shapes(rows, cols, cells, row_starts, cost.shape[0], row_starts[count] if row_starts.shape[0] > count else -1)
    if plan.shape[0] != cost.shape[0] or iterations.shape[0] != count or violation.shape[0] != count:
        raise InputError("plan, iterations and violation must have one entry a cell, a problem and a problem")
    if a is not None:
        a_values, b_values = a, b
        a_starts = starts(row_starts, count, a_values.shape[0], "row_starts")
        b_starts = starts(col_starts, count, b_values.shape[0], "col_starts")
        for k in range(count):
            if col_starts[k + 1] - col_starts[k] != cols[k]:
                raise InputError(
                    f"problem {k} has {cols[k]} columns but {col_starts[k + 1] - col_starts[k]} entries of b"
                )
        a_first = &a_values[0] if a_values.shape[0] else NULL
        b_first = &b_values[0] if b_values.shape[0] else NULL
    if count == 0:
        return
    options.reg, options.tolerance, options.max_iterations = reg, tol, max_iter
    cdef const double* first_cost = &cost[0] if cost.shape[0] else NULL
    cdef double* first_plan = &plan[0] if plan.shape[0] else NULL
    with nogil:
        status = c_sinkhorn(first_cost, &rows[0], &cols[0], &cells[0], a_first, a_starts, b_first, b_starts, count,
                            options, threads, first_plan, &iterations[0], &violation[0])
    if status.code == Code.not_finite:
        i, j = divmod(status.cell, cols[status.problem])
        value = cost[cells[status.problem] + status.cell]
        raise InputError(
            f"cost[{status.problem}] holds {describe(value)} at ({i}, {j}); "
            "expected finite values of magnitude at most 1e150"
        )


def similarity(const int64_t[::1] names, const int64_t[::1] arguments, const int64_t[::1] keys,
               const int64_t[::1] values, const int64_t[::1] begins, const int64_t[::1] gold_names,
               const int64_t[::1] gold_arguments, const int64_t[::1] gold_keys, const int64_t[::1] gold_values,
               const int64_t[::1] gold_begins, const int64_t[::1] gold_counts, const int64_t[::1] cells,
               int threads, double[::1] out):
    """Fill `out` with the similarity blocks; see ``similarity.hpp``."""
    cdef int64_t count = gold_begins.shape[0]
    cdef Py_ssize_t b
    cdef Calls predicted, gold
    predicted.start = starts(arguments, names.shape[0], keys.shape[0], "arguments")
    gold.start = starts(gold_arguments, gold_names.shape[0], gold_keys.shape[0], "gold_arguments")
    starts(begins, count, names.shape[0], "begins")
    starts(cells, count, out.shape[0], "cells")
    if values.shape[0] != keys.shape[0] or gold_values.shape[0] != gold_keys.shape[0] or gold_counts.shape[0] != count:
        raise InputError("values must be as long as keys, and gold_counts as gold_begins")
    for b in range(count):
        if gold_begins[b] < 0 or gold_counts[b] < 0 or gold_counts[b] > gold_names.shape[0] - gold_begins[b]:
            raise InputError(f"problem {b} reaches beyond the {gold_names.shape[0]} gold calls")
        if cells[b + 1] - cells[b] != (begins[b + 1] - begins[b]) * gold_counts[b]:
            raise InputError(
                f"problem {b} has {cells[b + 1] - cells[b]} cells; "
                f"expected {begins[b + 1] - begins[b]} x {gold_counts[b]}"
            )
    if out.shape[0] == 0:
        return
    predicted.name, gold.name = &names[0], &gold_names[0]
    predicted.key = &keys[0] if keys.shape[0] else NULL
    predicted.value = &values[0] if values.shape[0] else NULL
    gold.key = &gold_keys[0] if gold_keys.shape[0] else NULL
    gold.value = &gold_values[0] if gold_values.shape[0] else NULL
    with nogil:
        c_similarity(predicted, names.shape[0], &begins[0], gold, gold_names.shape[0], &gold_begins[0], &gold_counts[0],
                     &cells[0], count, threads, &out[0])


ctypedef fused bits:
    short
    int
    long long


def scatter(const bits[::1] values, const int64_t[:, ::1] spans, const int64_t[::1] turns, int threads, bits[:, :] out):
    """Write each turn's bits to its span of `out`, rows contiguous, and 0 elsewhere; see ``scatter.hpp``."""
    cdef int64_t rows = out.shape[0], width = out.shape[1]
    cdef int64_t stride = out.strides[0] // <Py_ssize_t>sizeof(bits)
    cdef Status status
    starts(turns, rows, values.shape[0], "turns")
    if spans.shape[0] != values.shape[0] or spans.shape[1] != 2:
        raise InputError(
            f"spans have shape ({spans.shape[0]}, {spans.shape[1]}); expected ({values.shape[0]}, 2), one a turn"
        )
    if width > 1 and out.strides[1] != <Py_ssize_t>sizeof(bits):
        raise InputError("the rows of out must be contiguous")
    if out.strides[0] % <Py_ssize_t>sizeof(bits) != 0:
        raise InputError("the rows of out must be a whole number of items apart")
    if rows > 1 and -width < stride < width:
        raise InputError("the rows of out overlap")
    cdef const bits* first_value = &values[0] if values.shape[0] else NULL
    cdef const int64_t* first_span = &spans[0, 0] if values.shape[0] else NULL
    if rows == 0:
        return
    cdef bits* first_out = &out[0, 0] if width else NULL
    with nogil:
        status = c_scatter(first_value, first_span, &turns[0], rows, width, stride, sizeof(bits), threads, first_out)
    if status.code == Code.ok:
        return
    k = turns[status.problem] + status.cell
    where = f"spans[{k}] = [{spans[k, 0]}, {spans[k, 1]}) (rollout {status.problem}, turn {status.cell})"
    if status.code == Code.overlap:
        raise InputError(f"{where} starts before the span before it ends; expected spans in order, without overlap")
    raise InputError(f"{where} does not fit; expected 0 <= start <= end <= {width}")


cdef str describe(double value):
    """A number as the messages show it."""
    return "NaN" if value != value else f"{value:g}"


def build_info():
    """What was compiled and what runs: compiler, instruction sets, sanitizer."""
    return {
        "compiler": matchtir_compiler.decode(),
        "simd_compiled": ["baseline", "avx2"] if matchtir_compiled_avx2 else ["baseline"],
        "simd_active": "avx2" if active_isa() == Isa.avx2 else "baseline",
        "sanitize": matchtir_sanitize.decode(),
    }


def set_simd(str name):
    """Choose the kernels: "baseline", "avx2", or "auto" for the best that this processor runs."""
    if name not in ("auto", "baseline", "avx2"):
        raise InputError(f"simd {name!r} is unknown; expected 'auto', 'baseline' or 'avx2'")
    if name == "avx2" and not has_avx2():
        raise InputError("simd 'avx2' was not compiled in, or this processor lacks AVX2 or FMA")
    c_set_isa(Isa.avx2 if name == "avx2" or (name == "auto" and has_avx2()) else Isa.baseline)
