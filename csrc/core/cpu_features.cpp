#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstring>

namespace fastode {
namespace {

#if defined(__x86_64__)
CpuFeatures detect() {
    __builtin_cpu_init();
    CpuFeatures found;
    auto note = [&found](bool has, const char* name) {
        if (has) found.names.emplace_back(name);
        return has;
    };
    note(__builtin_cpu_supports("sse4.2"), "sse4.2");
    // The builtins look at XGETBV too, so they are false where the operating system does not save the wide registers.
    const bool avx = note(__builtin_cpu_supports("avx"), "avx");
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool leaf1 = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0;
    const bool f16c = note(avx && leaf1 && (ecx & (1u << 29)) != 0, "f16c");  // older compilers have no builtin name
    const bool fma = note(__builtin_cpu_supports("fma"), "fma");
    const bool avx2 = note(__builtin_cpu_supports("avx2"), "avx2");
    const bool f = note(__builtin_cpu_supports("avx512f"), "avx512f");
    const bool bw = note(__builtin_cpu_supports("avx512bw"), "avx512bw");
    const bool dq = note(__builtin_cpu_supports("avx512dq"), "avx512dq");
    const bool vl = note(__builtin_cpu_supports("avx512vl"), "avx512vl");
    note(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
    found.avx2 = f16c && fma && avx2;
    found.avx512 = found.avx2 && f && bw && dq && vl;
    return found;
}
#else
CpuFeatures detect() {
    CpuFeatures found;
#if defined(__aarch64__)
    found.names = {"neon", "fma"};  // part of every 64-bit Arm processor
#endif
    return found;
}
#endif

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures found = detect();
    return found;
}

std::string cpu_brand() {
#if defined(__x86_64__)
    unsigned words[12] = {};
    if (__get_cpuid_max(0x80000000u, nullptr) < 0x80000004u) return "";
    for (unsigned leaf = 0; leaf < 3; ++leaf) {
        unsigned* part = words + 4 * leaf;
        __get_cpuid(0x80000002u + leaf, part, part + 1, part + 2, part + 3);
    }
    char text[sizeof(words) + 1] = {};
    std::memcpy(text, words, sizeof(words));
    const std::string brand(text);
    const auto first = brand.find_first_not_of(' ');
    return first == std::string::npos ? "" : brand.substr(first, brand.find_last_not_of(' ') - first + 1);
#else
    return "";
#endif
}

}  // namespace fastode
