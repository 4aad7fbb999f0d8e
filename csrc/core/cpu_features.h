// What this processor can do.
#pragma once

#include <string>
#include <vector>

namespace fastode {

struct CpuFeatures {
    bool avx2 = false;               // AVX2, FMA and F16C
    bool avx512 = false;             // AVX-512 F, BW, DQ and VL, on top of the above
    std::vector<std::string> names;  // extensions of interest, as the vendor writes them, lower case
};

// Detected once. An extension counts only if the operating system saves its registers as well.
const CpuFeatures& cpu_features();

// The vendor's name of the processor, '' where the instruction set has no way to ask for it.
std::string cpu_brand();

}  // namespace fastode
