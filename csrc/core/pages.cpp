#include "core/pages.h"

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastode {
namespace {

constexpr size_t kSmallest = size_t{1} << 16;
constexpr size_t kMostKept = size_t{1} << 26;

#if defined(__linux__)
constexpr size_t kHuge = size_t{1} << 21;

void* map(size_t size) {
    // Huge pages begin at multiples of their size: what lies before and after such a place is given back.
    const size_t more = size >= kHuge ? kHuge : 0;
    void* found = mmap(nullptr, size + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    if (more == 0) return found;
    char* const start = static_cast<char*>(found);
    const size_t before = (kHuge - reinterpret_cast<uintptr_t>(start) % kHuge) % kHuge;
    if (before > 0) munmap(start, before);
    if (more > before) munmap(start + before + size, more - before);
    madvise(start + before, size, MADV_HUGEPAGE);  // advice: without huge pages all is as before
    return start + before;
}
void unmap(void* data, size_t size) noexcept { munmap(data, size); }
#else
void* map(size_t size) { return ::operator new(size, std::align_val_t{64}); }
void unmap(void* data, size_t) noexcept { ::operator delete(data, std::align_val_t{64}); }
#endif

struct Piece {
    void* data;
    size_t size;
};

// What was given back. Never destroyed: pieces may come back while the process ends.
struct Kept {
    std::mutex mutex;
    std::vector<Piece> pieces;  // the last one was given back last
    size_t bytes = 0;
};
Kept& kept() {
    static Kept* const all = new Kept;
    return *all;
}

// Sizes that fit each other: powers of two, above 8 MiB multiples of that.
size_t rounded(size_t bytes) {
    constexpr size_t kStep = size_t{1} << 23;
    if (bytes > kStep) return (bytes + kStep - 1) / kStep * kStep;
    size_t size = kSmallest;
    while (size < bytes) size *= 2;
    return size;
}

}  // namespace

Pages::Pages(size_t bytes) : size_(rounded(bytes)) {
    Kept& all = kept();
    {
        const std::lock_guard<std::mutex> lock(all.mutex);
        for (size_t i = all.pieces.size(); i-- > 0;) {
            if (all.pieces[i].size != size_) continue;
            data_ = all.pieces[i].data;
            all.pieces.erase(all.pieces.begin() + static_cast<std::ptrdiff_t>(i));
            all.bytes -= size_;
            return;
        }
    }
    data_ = map(size_);
}

void Pages::release() noexcept {
    if (data_ == nullptr) return;
    Kept& all = kept();
    std::vector<Piece> old;  // given back longest ago, and too many now
    {
        const std::lock_guard<std::mutex> lock(all.mutex);
        try {
            all.pieces.push_back({data_, size_});
            all.bytes += size_;
        } catch (...) {
            unmap(data_, size_);
        }
        size_t n = 0;
        while (all.bytes > kMostKept) all.bytes -= all.pieces[n++].size;
        try {
            old.assign(all.pieces.begin(), all.pieces.begin() + static_cast<std::ptrdiff_t>(n));
        } catch (...) {
            for (size_t i = 0; i < n; ++i) unmap(all.pieces[i].data, all.pieces[i].size);
        }
        all.pieces.erase(all.pieces.begin(), all.pieces.begin() + static_cast<std::ptrdiff_t>(n));
    }
    for (const Piece& piece : old) unmap(piece.data, piece.size);
    data_ = nullptr;
}

}  // namespace fastode
