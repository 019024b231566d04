#include "sinkhorn.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "isa.hpp"
#include "parallel.hpp"

namespace matchtir {
namespace {

constexpr double largest_cost = 1e150;

struct Kernel {
    SinkhornKernel solve;
    std::int64_t lanes;
};

Kernel kernel() {
#if defined(MATCHTIR_HAS_AVX2)
    if (active_isa() == Isa::avx2) return {avx2::sinkhorn, 4};
#endif
    return {baseline::sinkhorn, 2};
}

}  // namespace

Status sinkhorn(const double* cost, const std::int64_t* rows, const std::int64_t* cols, const std::int64_t* cells,
                const double* a, const std::int64_t* row_starts, const double* b, const std::int64_t* col_starts,
                std::int64_t count, const SinkhornOptions& options, int threads, double* plan, std::int64_t* iterations,
                double* violation) {
    std::int64_t scratch_size = 0;
    for (std::int64_t p = 0; p < count; ++p) {
        for (std::int64_t k = cells[p]; k < cells[p + 1]; ++k)
            if (!(std::fabs(cost[k]) <= largest_cost)) return {Code::not_finite, p, k - cells[p]};
        scratch_size = std::max(scratch_size, sinkhorn_scratch(rows[p], cols[p]));
        iterations[p] = 0;
        violation[p] = 0.0;
    }
    // Problems of one shape next to each other, cut into groups of as many as there are lanes.
    std::vector<std::int64_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    const auto same_shape = [=](std::int64_t x, std::int64_t y) { return rows[x] == rows[y] && cols[x] == cols[y]; };
    std::stable_sort(order.begin(), order.end(), [=](std::int64_t x, std::int64_t y) {
        return rows[x] != rows[y] ? rows[x] < rows[y] : cols[x] < cols[y];
    });
    const Kernel kernel = matchtir::kernel();
    std::vector<std::int64_t> starts;  // of the groups, in `order`
    for (std::int64_t k = 0; k < count; ++k) {
        const bool full = !starts.empty() && k - starts.back() == kernel.lanes;
        if (k == 0 || full || !same_shape(order[static_cast<std::size_t>(k - 1)], order[static_cast<std::size_t>(k)]))
            starts.push_back(k);
    }
    starts.push_back(count);
    const std::int64_t groups = static_cast<std::int64_t>(starts.size()) - 1;
    parallel_for(groups, 4, threads, scratch_size, [&](std::int64_t begin, std::int64_t end, double* scratch) {
        for (std::int64_t group = begin; group < end; ++group) {
            const std::int64_t first = starts[static_cast<std::size_t>(group)];
            const std::int64_t size = starts[static_cast<std::size_t>(group) + 1] - first;
            SinkhornProblem problems[most_lanes];
            for (std::int64_t k = 0; k < size; ++k) {
                const std::int64_t p = order[static_cast<std::size_t>(first + k)];
                problems[k] = {cost + cells[p],
                               a ? a + row_starts[p] : nullptr,
                               b ? b + col_starts[p] : nullptr,
                               plan + cells[p],
                               iterations + p,
                               violation + p};
            }
            const std::int64_t p = order[static_cast<std::size_t>(first)];
            if (rows[p] > 0 && cols[p] > 0) kernel.solve(problems, size, rows[p], cols[p], options, scratch);
        }
    });
    return {};
}

}  // namespace matchtir
