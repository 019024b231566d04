#include "isa.hpp"

#include <atomic>

namespace matchtir {
namespace {

std::atomic<Isa> chosen{has_avx2() ? Isa::avx2 : Isa::baseline};

}  // namespace

bool has_avx2() {
#if defined(MATCHTIR_HAS_AVX2)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

Isa active_isa() { return chosen.load(std::memory_order_relaxed); }

void set_isa(Isa isa) { chosen.store(isa, std::memory_order_relaxed); }

}  // namespace matchtir
