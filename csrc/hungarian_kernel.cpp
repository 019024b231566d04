// One problem from scores to matches: checks the scores, lays them out for the search in
// augmenting_paths.hpp, and settles ties.

#include "hungarian_kernel.hpp"

#include "augmenting_paths.hpp"
#include "simd.hpp"

namespace matchtir::MATCHTIR_ISA {
namespace {

// Doubles above this would overflow when they are added up along a path; such problems are scaled
// down by a power of two, which changes no comparison but those among subnormal numbers.
constexpr double huge = 0x1p1000, rescale = 0x1p-64;

struct Range {
    bool finite, huge, negative;
};

template <class T>
Range range(const T* scores, std::int64_t count) {
    Range r{true, false, false};
    bool ordinary = true;
    std::int64_t k = 0;
    if constexpr (sizeof(T) == sizeof(double)) {
        Mask odd{}, below{};
        for (; k + lanes <= count; k += lanes) {
            const Vec x = load(scores + k);
            odd |= ~(magnitude(x) <= huge);
            below |= x < 0.0;
        }
        ordinary = !any(odd);
        r.negative = any(below);
    }
    for (; k < count; ++k) {
        ordinary &= __builtin_fabs(static_cast<double>(scores[k])) <= huge;
        r.negative |= scores[k] < 0;
    }
    if (ordinary) return r;
    for (k = 0; k < count; ++k) {
        const double size = __builtin_fabs(static_cast<double>(scores[k]));
        r.finite &= size < infinity;
        r.huge |= size > huge;
    }
    return r;
}

// Copies the profits with the shorter side as rows, padded with minus infinity.
template <class T, class Profit>
void copy(const T* scores, std::int64_t m, std::int64_t n, double* out, std::int64_t stride, const Profit& profit) {
    const std::int64_t rows = m <= n ? m : n, cols = m <= n ? n : m;
    for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = cols; j < stride; ++j) out[i * stride + j] = -infinity;
    if (m <= n) {
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = 0; j < n; ++j) out[i * stride + j] = profit(scores[i * n + j]);
        return;
    }
    constexpr std::int64_t tile = 32;
    for (std::int64_t j0 = 0; j0 < n; j0 += tile) {
        const std::int64_t j1 = j0 + tile < n ? j0 + tile : n;
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = j0; j < j1; ++j) out[j * stride + i] = profit(scores[i * n + j]);
    }
}

// Whether the tie rule below has anything to change: a free column left of a row's own with the same
// profit, or, where rows are free too, an earlier free row with the same profit in its column.
bool has_ties(const Problem& q, bool partial, double* paid) {
    Mask tied{};
    for (std::int64_t j = 0; j < q.cols; ++j) paid[j] = infinity;
    for (std::int64_t i = 0; i < q.rows; ++i) {
        const std::int64_t own = q.col_of[i];
        if (own < 0) continue;
        paid[own] = q.row(i)[own];
        Vec column = lane_numbers();
        // Past `own` too: a trip count that changes from row to row costs more than the columns.
        for (std::int64_t j = 0; j < q.cols; j += lanes) {
            const Mask same = load(q.row(i) + j) == paid[own] - Vec{};
            tied |= same & (load(q.row_of + j) < 0) & (column < static_cast<double>(own));
            column += static_cast<double>(lanes);
        }
    }
    for (std::int64_t i = 0; i < q.rows && partial; ++i) {
        if (q.col_of[i] >= 0) continue;
        for (std::int64_t j = 0; j < q.cols; j += lanes)
            tied |= (load(q.row(i) + j) == load(paid + j)) & (load(q.row_of + j) > i);
    }
    return any(tied);
}

// The tie rule. An unmatched row takes the column of a later row that scores the same there, and a
// matched row takes the first unmatched column that scores the same: of equal calls the first is paid.
template <class T>
void prefer_first(const T* scores, std::int64_t m, std::int64_t n, std::int64_t* matches, std::int64_t* owner) {
    for (std::int64_t j = 0; j < n; ++j) owner[j] = -1;
    for (std::int64_t i = 0; i < m; ++i)
        if (matches[i] >= 0) owner[matches[i]] = i;
    for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n && matches[i] < 0; ++j) {
            if (owner[j] <= i || scores[i * n + j] != scores[owner[j] * n + j]) continue;
            matches[owner[j]] = -1;
            matches[i] = j;
            owner[j] = i;
        }
    }
    for (std::int64_t i = 0; i < m; ++i) {
        const std::int64_t own = matches[i];
        for (std::int64_t j = 0; j < own; ++j) {
            if (owner[j] >= 0 || scores[i * n + j] != scores[i * n + own]) continue;
            owner[own] = -1;
            owner[j] = i;
            matches[i] = j;
            break;
        }
    }
}

}  // namespace

template <class T>
std::int64_t hungarian(const T* scores, std::int64_t m, std::int64_t n, bool partial, std::int64_t* matches,
                       double* scratch) {
    const Range r = range(scores, m * n);
    if (!r.finite) {
        std::int64_t cell = 0;
        while (static_cast<double>(scores[cell]) - static_cast<double>(scores[cell]) == 0) ++cell;
        return cell;
    }
    for (std::int64_t i = 0; i < m; ++i) matches[i] = -1;
    if (m == 0 || n == 0) return -1;
    if (m == 1 || n == 1) {  // one pair: the first of the highest scores
        std::int64_t best = 0;
        for (std::int64_t k = 1; k < m * n; ++k) best = scores[k] > scores[best] ? k : best;
        if (!partial || scores[best] > 0) matches[m == 1 ? 0 : best] = m == 1 ? best : 0;
        return -1;
    }
    const bool transposed = m > n;
    const std::int64_t rows = transposed ? n : m, cols = transposed ? m : n, width = padded(cols);
    const auto take = [&scratch](std::int64_t count) {
        double* const block = scratch;
        scratch += count;
        return block;
    };
    const auto take_index = [&take](std::int64_t count) { return reinterpret_cast<std::int64_t*>(take(count)); };
    Problem q{};
    q.rows = rows;
    q.square = m == n;
    double* const work = take(rows * width);
    // A large problem is memory-bound: it is read in place where nothing has to change.
    constexpr bool is_double = sizeof(T) == sizeof(double);
    if (is_double && !transposed && !r.huge && !(partial && r.negative) && cols % padding == 0) {
        q.s = reinterpret_cast<const double*>(scores);
        q.stride = q.cols = cols;
    } else {
        const double scale = r.huge ? rescale : 1.0;
        if (partial && r.negative)
            copy(scores, m, n, work, width, [scale](T x) { return x < 0 ? 0.0 : static_cast<double>(x) * scale; });
        else
            copy(scores, m, n, work, width, [scale](T x) { return static_cast<double>(x) * scale; });
        q.s = work;
        q.stride = q.cols = width;
    }
    q.p = take(width);
    q.distance = take(width);
    q.tree_distance = take(width);
    q.parent = take_index(width);
    q.row_of = take_index(width);
    q.tree = take_index(width);
    q.col_of = take_index(width);
    q.free_row = take_index(width);
    solve(q);
    if (partial) {
        for (std::int64_t i = 0; i < rows; ++i) {
            if (q.row(i)[q.col_of[i]] > 0) continue;
            q.row_of[q.col_of[i]] = -1;
            q.col_of[i] = -1;
        }
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        if (q.col_of[i] < 0) continue;
        (transposed ? matches[q.col_of[i]] : matches[i]) = transposed ? i : q.col_of[i];
    }
    if ((m != n || partial) && has_ties(q, partial, q.distance)) prefer_first(scores, m, n, matches, q.row_of);
    return -1;
}

template std::int64_t hungarian(const float*, std::int64_t, std::int64_t, bool, std::int64_t*, double*);
template std::int64_t hungarian(const double*, std::int64_t, std::int64_t, bool, std::int64_t*, double*);

}  // namespace matchtir::MATCHTIR_ISA
