// Arithmetic for files under isa/: internal linkage, so that each instruction set keeps its own copy.
#pragma once

#include "core/isa.h"

#ifndef FASTODE_ISA
#error "isa_math.h is for files under isa/ only"
#endif

// One rounding where the target has a fused multiply-add in hardware, two where it would be a slow library call.
#if defined(__FMA__) || defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
#define FASTODE_HAS_FMA 1
#else
#define FASTODE_HAS_FMA 0
#endif

// Before a loop: its iterations do not depend on each other, although its pointers may be equal. (Not __restrict: an
// output may be one of the inputs.)
#if defined(__clang__)
#define FASTODE_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTODE_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace fastode::FASTODE_ISA {
namespace {

// a * b + c. Compiled with -ffp-contract=off, so this is the only place where the two are fused.
[[maybe_unused, gnu::always_inline]] inline float multiply_add(float a, float b, float c) {
#if FASTODE_HAS_FMA
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

[[maybe_unused, gnu::always_inline]] inline double multiply_add(double a, double b, double c) {
#if FASTODE_HAS_FMA
    return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
