#include "core/isa.h"

#include <atomic>

#include "core/cpu_features.h"

namespace fastode {
namespace {

Isa best() noexcept {
    if (isa_usable(Isa::avx512)) return Isa::avx512;
    if (isa_usable(Isa::avx2)) return Isa::avx2;
    return Isa::generic;
}

std::atomic<Isa>& active() noexcept {
    static std::atomic<Isa> isa{best()};
    return isa;
}

}  // namespace

bool isa_usable(Isa isa) noexcept {
    switch (isa) {
        case Isa::generic: return true;
        case Isa::avx2: return FASTODE_HAVE_ISA_AVX2 && cpu_features().avx2;
        case Isa::avx512: return FASTODE_HAVE_ISA_AVX512 && cpu_features().avx512;
    }
    return false;
}

Isa active_isa() noexcept { return active().load(std::memory_order_relaxed); }

void set_isa(Isa isa) noexcept { active().store(isa, std::memory_order_relaxed); }

}  // namespace fastode
