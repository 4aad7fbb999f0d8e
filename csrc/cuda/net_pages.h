// Records of whole solves: see NetPages.
#pragma once

#include "cuda/group.h"
#include "cuda/net_state.h"

namespace fastode {

template <class T>
struct NetPlace {
    double* step;  // t, t_next, h
    T* state;      // null where it is not kept
};

// The chunk of a page.
template <class T>
FASTODE_HOST_DEVICE inline int chunk_of(const NetPages<T>& pages, int64_t page) {
    int c = 0;
    while (c + 1 < pages.n_chunks && page >= pages.first[c + 1]) ++c;
    return c;
}

// The place of step number n, which is in this page.
template <class T>
FASTODE_HOST_DEVICE inline NetPlace<T> place_of(const NetPages<T>& pages, int64_t page, int64_t n, int width) {
    const int c = chunk_of(pages, page);
    const int64_t own = page - pages.first[c], steps = static_cast<int64_t>(pages.per_page) * pages.every,
                  slot = n % steps;
    T* state =
        slot % pages.every == 0 ? pages.states[c] + (own * pages.per_page + slot / pages.every) * width : nullptr;
    return {pages.table[c] + (own * steps + slot) * 3, state};
}

template <class T>
FASTODE_HOST_DEVICE inline int64_t& page_before(const NetPages<T>& pages, int64_t page) {
    const int c = chunk_of(pages, page);
    return pages.before[c][page - pages.first[c]];
}

// A page for a sample's next steps; -1 if there is none left. The counter may then be beyond the last page.
template <class T>
FASTODE_HOST_DEVICE inline int64_t take_page(const NetPages<T>& pages) {
    int64_t page;
#ifdef __CUDA_ARCH__
    page = static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(pages.taken), 1ULL));  // NOLINT
#else
    page = (*pages.taken)++;
#endif
    return page < pages.first[pages.n_chunks] ? page : -1;
}

}  // namespace fastode
