// Samples in rows that are under way at once. One sample is a chain of operations that wait for each other; several,
// stage by stage, keep the processor busy, as long as their numbers are in the first-level cache together.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastode {

constexpr int64_t kMostSlots = 8;

// Each array of a slot begins a cache line.
template <class T>
int64_t whole_lines(int64_t n) {
    constexpr int64_t kLine = 64 / sizeof(T);
    return (n + kLine - 1) / kLine * kLine;
}

// How many slots there are, and how far apart they lie.
struct RowSlots {
    int64_t n, stride;

    // For slots of so many elements each.
    template <class T>
    static RowSlots of(int64_t elements, int64_t cache_bytes) {
        // An odd number of cache lines: the same places of different slots fall into different sets of the cache. One
        // line more than is needed, as arrays may be read past their ends.
        constexpr int64_t kLine = 64 / sizeof(T);
        const int64_t stride = ((elements + kLine - 1) / kLine + 1) / 2 * 2 * kLine + kLine;
        return {std::clamp<int64_t>(cache_bytes / (stride * static_cast<int64_t>(sizeof(T))), 1, kMostSlots), stride};
    }
};

}  // namespace fastode
