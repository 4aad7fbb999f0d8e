// Instruction sets: the same kernel source compiled several times, the best copy chosen at run time.
//
// Every file csrc/<area>/isa/<family>.cpp is compiled once per instruction set with FASTODE_ISA defined to its name
// (generic, avx2, avx512; only generic where the compiler's target is not x86-64) and with the flags for it. To add a
// family of kernels:
//
//   1. csrc/<area>/<family>.h        struct FooKernels { void (*f32)(...); void (*f64)(...); };
//                                    FASTODE_ISA_TABLE(FooKernels, foo_kernels)
//   2. csrc/<area>/isa/<family>.cpp  namespace fastode::FASTODE_ISA {
//                                    namespace { template <class T> void foo(...) { ... } }
//                                    const FooKernels foo_kernels = {foo<float>, foo<double>};
//                                    }
//   3. callers, in ordinary files    fastode::foo_kernels().f32(...)
//
// The trap to avoid: an inline function or template (std::max, std::vector, a class of ours) that is not inlined leaves
// a weak copy in each object file, compiled for that object's instruction set. The linker keeps one copy for the whole
// module, perhaps the AVX-512 one, and the generic path then dies with an illegal instruction on an older machine.
// Therefore a file under isa/ puts everything into namespace fastode::FASTODE_ISA, all but its tables into an unnamed
// namespace there (internal linkage), works on plain pointers and numbers, and uses no std:: templates, no thread pool
// and no exceptions; what surrounds a kernel (checks, threads, allocation) belongs to an ordinary file.
// tests/test_build.py reads the object files and fails if one of them defines a weak symbol.
#pragma once

// Which copies exist; setup.py defines these on the command line.
#ifndef FASTODE_HAVE_ISA_AVX2
#define FASTODE_HAVE_ISA_AVX2 0
#endif
#ifndef FASTODE_HAVE_ISA_AVX512
#define FASTODE_HAVE_ISA_AVX512 0
#endif

namespace fastode {

enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2 };

// The instruction set in use: the best one that this build contains and this machine supports, unless set_isa chose.
Isa active_isa() noexcept;

// True if the instruction set was compiled in and this machine can run it.
bool isa_usable(Isa isa) noexcept;

// Uses this instruction set from now on. The caller has checked isa_usable.
void set_isa(Isa isa) noexcept;

}  // namespace fastode

#if FASTODE_HAVE_ISA_AVX2
#define FASTODE_IF_AVX2(...) __VA_ARGS__
#else
#define FASTODE_IF_AVX2(...)
#endif
#if FASTODE_HAVE_ISA_AVX512
#define FASTODE_IF_AVX512(...) __VA_ARGS__
#else
#define FASTODE_IF_AVX512(...)
#endif

// Declares the table `name` of every instruction set and a function `name()` that returns the one in use.
// To be used inside namespace fastode. Files under isa/ see the declarations only.
#define FASTODE_ISA_DECLARE(Type, name)                         \
    namespace generic {                                         \
    extern const Type name;                                     \
    }                                                           \
    FASTODE_IF_AVX2(namespace avx2 { extern const Type name; }) \
    FASTODE_IF_AVX512(namespace avx512 { extern const Type name; })
#ifdef FASTODE_ISA
#define FASTODE_ISA_TABLE(Type, name) FASTODE_ISA_DECLARE(Type, name)
#else
#define FASTODE_ISA_TABLE(Type, name)                                  \
    FASTODE_ISA_DECLARE(Type, name)                                    \
    inline const Type& name() noexcept {                               \
        switch (active_isa()) {                                        \
            FASTODE_IF_AVX512(case Isa::avx512 : return avx512::name;) \
            FASTODE_IF_AVX2(case Isa::avx2 : return avx2::name;)       \
            default: return generic::name;                             \
        }                                                              \
    }
#endif
