#include "hungarian.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>
#include <vector>

#include "hungarian_kernel.hpp"
#include "isa.hpp"
#include "parallel.hpp"

namespace matchtir {
namespace {

// Problems handed out at a time: few enough to balance, enough to hide the counter.
constexpr std::int64_t piece = 16;

// Runs solve(b, scratch) -> flat index of a bad score or -1 over the batch; the first bad problem is reported.
template <class Solve>
Status for_each_problem(std::int64_t count, int threads, std::int64_t scratch_size, const Solve& solve) {
    std::mutex guard;
    Status status;
    parallel_for(count, piece, threads, scratch_size, [&](std::int64_t begin, std::int64_t end, double* scratch) {
        for (std::int64_t b = begin; b < end; ++b) {
            const std::int64_t cell = solve(b, scratch);
            if (cell < 0) continue;
            const std::lock_guard lock(guard);
            if (status.code == Code::ok || b < status.problem) status = {Code::not_finite, b, cell};
        }
    });
    return status;
}

template <class T>
HungarianKernel<T> kernel() {
#if defined(MATCHTIR_HAS_AVX2)
    if (active_isa() == Isa::avx2) return avx2::hungarian<T>;
#endif
    return baseline::hungarian<T>;
}

template <class T>
std::int64_t greedy_one(const T* scores, std::int64_t m, std::int64_t n, bool partial, std::int64_t* matches) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(m * n));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    for (const std::int64_t k : order)
        if (!std::isfinite(scores[k])) return k;
    std::sort(order.begin(), order.end(), [scores](std::int64_t x, std::int64_t y) {
        return scores[x] != scores[y] ? scores[x] > scores[y] : x < y;
    });
    std::fill(matches, matches + m, std::int64_t{-1});
    std::vector<char> taken(static_cast<std::size_t>(n), 0);
    for (const std::int64_t k : order) {
        if (partial && !(scores[k] > 0)) break;
        const std::int64_t i = k / n, j = k % n;
        if (matches[i] >= 0 || taken[static_cast<std::size_t>(j)]) continue;
        matches[i] = j;
        taken[static_cast<std::size_t>(j)] = 1;
    }
    return -1;
}

}  // namespace

template <class T>
Status hungarian(const T* scores, const std::int64_t* rows, const std::int64_t* cols, const std::int64_t* cells,
                 const std::int64_t* calls, std::int64_t count, bool partial, int threads, std::int64_t* matches) {
    std::int64_t scratch_size = 0;
    for (std::int64_t b = 0; b < count; ++b) scratch_size = std::max(scratch_size, hungarian_scratch(rows[b], cols[b]));
    const HungarianKernel<T> solve = kernel<T>();
    return for_each_problem(count, threads, scratch_size, [=](std::int64_t b, double* scratch) {
        return solve(scores + cells[b], rows[b], cols[b], partial, matches + calls[b], scratch);
    });
}

template <class T>
Status greedy(const T* scores, const std::int64_t* rows, const std::int64_t* cols, const std::int64_t* cells,
              const std::int64_t* calls, std::int64_t count, bool partial, int threads, std::int64_t* matches) {
    return for_each_problem(count, threads, 0, [=](std::int64_t b, double*) {
        return greedy_one(scores + cells[b], rows[b], cols[b], partial, matches + calls[b]);
    });
}

template Status hungarian(const float*, const std::int64_t*, const std::int64_t*, const std::int64_t*,
                          const std::int64_t*, std::int64_t, bool, int, std::int64_t*);
template Status hungarian(const double*, const std::int64_t*, const std::int64_t*, const std::int64_t*,
                          const std::int64_t*, std::int64_t, bool, int, std::int64_t*);
template Status greedy(const float*, const std::int64_t*, const std::int64_t*, const std::int64_t*, const std::int64_t*,
                       std::int64_t, bool, int, std::int64_t*);
template Status greedy(const double*, const std::int64_t*, const std::int64_t*, const std::int64_t*,
                       const std::int64_t*, std::int64_t, bool, int, std::int64_t*);

}  // namespace matchtir
