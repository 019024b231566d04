// The instruction sets that the kernels were compiled for, and the one that this processor gets.
#pragma once

namespace matchtir {

enum class Isa { baseline, avx2 };

// What the processor offers, unless `set_isa` said otherwise.
Isa active_isa();

bool has_avx2();

// For tests and bug reports. Asking for AVX2 where `has_avx2()` is false is undefined.
void set_isa(Isa isa);

}  // namespace matchtir
