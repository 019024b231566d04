// Fixed-width vectors for the kernel files, which CMake compiles once for each instruction set.
//
// The GCC/Clang vector extension is used rather than intrinsics, so one source serves SSE2, NEON and
// AVX2. Kernel files must not instantiate templates of the standard library: the linker keeps one
// copy of such a function, and it might be the AVX2 one on a machine without it.
#pragma once

#include <cstdint>

#ifndef MATCHTIR_ISA
#error "kernel files are compiled with -DMATCHTIR_ISA=<name> -DMATCHTIR_LANES=<doubles a vector>"
#endif

namespace matchtir::MATCHTIR_ISA {

constexpr std::int64_t lanes = MATCHTIR_LANES;

typedef double Vec __attribute__((vector_size(MATCHTIR_LANES * 8)));
typedef long long Mask __attribute__((vector_size(MATCHTIR_LANES * 8)));

typedef unsigned long long Unsigned __attribute__((vector_size(MATCHTIR_LANES * 8)));

inline Vec load(const double* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

inline void store(double* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

inline Mask load(const std::int64_t* p) {
    Mask v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

inline void store(std::int64_t* p, Mask v) { __builtin_memcpy(p, &v, sizeof v); }

inline Vec splat(double x) { return x - Vec{}; }

inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// The vector with its lanes moved by `Step`, cyclically.
template <int Step>
inline Vec rotate(Vec v) {
#if MATCHTIR_LANES == 2
#define MATCHTIR_ROTATED (Step + 0) % 2, (Step + 1) % 2
#else
#define MATCHTIR_ROTATED (Step + 0) % 4, (Step + 1) % 4, (Step + 2) % 4, (Step + 3) % 4
#endif
#if defined(__clang__)
    return __builtin_shufflevector(v, v, MATCHTIR_ROTATED);
#else
    return __builtin_shuffle(v, Mask{MATCHTIR_ROTATED});
#endif
#undef MATCHTIR_ROTATED
}

// The smallest lane, in every lane.
inline Vec spread_smallest(Vec v) {
    if constexpr (lanes == 4) v = smaller(v, rotate<2>(v));
    return smaller(v, rotate<1>(v));
}

inline Vec lane_numbers() {
    Vec v{};
    for (std::int64_t k = 0; k < lanes; ++k) v[k] = static_cast<double>(k);
    return v;
}

inline Vec magnitude(Vec v) { return (Vec)((Mask)v & 0x7fffffffffffffff); }

inline bool any(Mask m) {
#if MATCHTIR_LANES == 4 && defined(__AVX__)
    return __builtin_ia32_movmskpd256((Vec)m) != 0;
#elif MATCHTIR_LANES == 2 && defined(__SSE2__)
    return __builtin_ia32_movmskpd((Vec)m) != 0;
#else
    std::int64_t bits = 0;
    for (std::int64_t k = 0; k < lanes; ++k) bits |= m[k];
    return bits != 0;
#endif
}

}  // namespace matchtir::MATCHTIR_ISA
