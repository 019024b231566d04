// The optimal-transport kernel as each instruction set offers it; `sinkhorn.cpp` picks one at run time.
#pragma once

#include <cstdint>

namespace matchtir {

constexpr std::int64_t most_lanes = 4;

// Problems with more columns get no Newton steps, whose cost grows with the cube.
constexpr std::int64_t most_newton_columns = 64;

struct SinkhornOptions {
    double reg;
    double tolerance;
    std::int64_t max_iterations;
};

// One problem. `a` and `b` are null for uniform marginals; `plan` may not alias `cost`.
struct SinkhornProblem {
    const double* cost;  // [m * n]
    const double* a;     // [m]
    const double* b;     // [n]
    double* plan;        // [m * n]
    std::int64_t* iterations;
    double* violation;
};

// Solves `count` <= lanes problems of one shape side by side, one a lane.
// `scratch` holds sinkhorn_scratch(m, n) doubles, aligned to 64 bytes.
using SinkhornKernel = void (*)(const SinkhornProblem* problems, std::int64_t count, std::int64_t m, std::int64_t n,
                                const SinkhornOptions& options, double* scratch);

constexpr std::int64_t sinkhorn_scratch(std::int64_t m, std::int64_t n) {
    const std::int64_t newton = n <= most_newton_columns ? n * n + 3 * n + m : 0;
    return most_lanes * (2 * m * n + 4 * m + 3 * n + newton);
}

#define MATCHTIR_DECLARE(isa)                                                                          \
    namespace isa {                                                                                    \
    void sinkhorn(const SinkhornProblem* problems, std::int64_t count, std::int64_t m, std::int64_t n, \
                  const SinkhornOptions& options, double* scratch);                                    \
    }
MATCHTIR_DECLARE(baseline)
MATCHTIR_DECLARE(avx2)
#undef MATCHTIR_DECLARE

}  // namespace matchtir
