// Ragged batch of entropic optimal-transport problems.
#pragma once

#include <cstdint>

#include "sinkhorn_kernel.hpp"
#include "status.hpp"

namespace matchtir {

// Problem b has cost[cells[b]:cells[b + 1]], rows[b] x cols[b], row-major, marginals a[row_starts[b]:]
// and b[col_starts[b]:] (both null: uniform) and writes its plan beside its cost, its iterations and
// the violation sum |Z 1 - a|. A problem without rows or columns has an empty plan and 0 iterations.
//
// Returns not_finite for the first problem with a cost that is NaN or beyond 1e150 in magnitude.
Status sinkhorn(const double* cost, const std::int64_t* rows, const std::int64_t* cols, const std::int64_t* cells,
                const double* a, const std::int64_t* row_starts, const double* b, const std::int64_t* col_starts,
                std::int64_t count, const SinkhornOptions& options, int threads, double* plan, std::int64_t* iterations,
                double* violation);

}  // namespace matchtir
