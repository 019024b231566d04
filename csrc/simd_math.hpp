// Elementary functions of vectors, for the kernel files.
#pragma once

#include "simd.hpp"

namespace matchtir::MATCHTIR_ISA {

// exp(x) for x < 708 to within two units in the last place, 0 below -708; after W. J. Cody and
// W. Waite, "Software Manual for the Elementary Functions", Prentice-Hall (1980), with Taylor's series.
inline Vec exponential(Vec x) {
    const double log2e = 1.4426950408889634, ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
    const double to_integer = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const Mask underflow = x < -708.0;
    x = underflow ? splat(0.0) : x;
    const Vec shifted = x * log2e + to_integer;
    const Vec k = shifted - to_integer;
    const Vec r = (x - k * ln2_high) - k * ln2_low;
    Vec sum = splat(1.0 / 6227020800.0);
    const double coefficients[] = {
        1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
    for (const double c : coefficients) sum = sum * r + c;
    const Vec power = (Vec)(((Mask)shifted << 52) + 0x3ff0000000000000);
    return underflow ? splat(0.0) : sum * power;
}

// log(x) for normal x > 0 to within some units in the last place: with x = 2^k y and y in
// [1/sqrt 2, sqrt 2], log y = 2 artanh((y - 1) / (y + 1)).
inline Vec logarithm(Vec x) {
    const double ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
    const Mask mantissa = ((Mask)x & 0x000fffffffffffff) | 0x3ff0000000000000;
    const Mask half = (Vec)mantissa > 1.4142135623730951;  // -1 where true
    const Vec y = half ? (Vec)mantissa * 0.5 : (Vec)mantissa;
    // Added to the bits of 1.5 * 2^52, an integer becomes that double plus the integer.
    const Mask exponent = (Mask)((Unsigned)x >> 52) - 1023 - half;
    const Vec k = (Vec)(exponent + 0x4338000000000000) - 6755399441055744.0;
    const Vec t = (y - 1.0) / (y + 1.0), t2 = t * t;
    Vec sum = splat(1.0 / 21);
    const double coefficients[] = {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
                                   1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};
    for (const double c : coefficients) sum = sum * t2 + c;
    return k * ln2_high + (2.0 * t * sum + k * ln2_low);
}

}  // namespace matchtir::MATCHTIR_ISA
