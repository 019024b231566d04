// The assignment kernel as each instruction set offers it; `hungarian.cpp` picks one at run time.
#pragma once

#include <cstdint>

namespace matchtir {

// Solves one problem: `scores` m x n row-major, `matches` [m] receives each row's column or -1.
// `partial` leaves pairs with score <= 0 unmatched. `scratch` holds hungarian_scratch(m, n) doubles.
// Returns -1, or the flat index of a score that is not finite.
template <class T>
using HungarianKernel = std::int64_t (*)(const T* scores, std::int64_t m, std::int64_t n, bool partial,
                                         std::int64_t* matches, double* scratch);

// Most lanes of any instruction set: rows of the working copy are padded to a multiple of it.
constexpr std::int64_t padding = 4;

constexpr std::int64_t padded(std::int64_t n) { return (n + padding - 1) / padding * padding; }

// Doubles of scratch for a problem: the working copy and at most ten vectors.
constexpr std::int64_t hungarian_scratch(std::int64_t m, std::int64_t n) {
    const std::int64_t rows = m < n ? m : n, cols = m < n ? n : m;
    return rows * padded(cols) + 10 * padded(cols);
}

#define MATCHTIR_DECLARE(isa)                                                                                    \
    namespace isa {                                                                                              \
    template <class T>                                                                                           \
    std::int64_t hungarian(const T* scores, std::int64_t m, std::int64_t n, bool partial, std::int64_t* matches, \
                           double* scratch);                                                                     \
    }
MATCHTIR_DECLARE(baseline)
MATCHTIR_DECLARE(avx2)
#undef MATCHTIR_DECLARE

}  // namespace matchtir
