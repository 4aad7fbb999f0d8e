#include "cpu/tile/workspace.h"

#include <algorithm>

namespace fastode {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kPad = 2 * kAlign;            // one to align, one to read past the end
constexpr size_t kFirst = size_t{1} << 16;     // bytes
constexpr size_t kMostKept = size_t{1} << 26;  // bytes a thread may keep while it does nothing

}  // namespace

Workspace& Workspace::of_this_thread() {
    thread_local Workspace workspace;
    return workspace;
}

void* Workspace::take_bytes(size_t n) {
    const size_t wanted = (n + kAlign - 1) / kAlign * kAlign + kAlign;
    while (block_ < blocks_.size() && used_ + wanted + kPad > blocks_[block_].size) {
        ++block_;
        used_ = 0;
    }
    if (block_ == blocks_.size()) {
        const size_t last = blocks_.empty() ? kFirst : 2 * blocks_.back().size;
        const size_t size = std::max(last, wanted + kPad);
        blocks_.push_back({std::unique_ptr<char[]>(new char[size]), size});  // not cleared
    }
    char* start = blocks_[block_].memory.get();
    const size_t shift = (kAlign - reinterpret_cast<uintptr_t>(start) % kAlign) % kAlign;
    void* result = start + shift + used_;
    used_ += wanted;
    return result;
}

void Workspace::leave(size_t block, size_t used) {
    block_ = block;
    used_ = used;
    if (--depth_ > 0 || blocks_.empty()) return;
    // The largest block alone holds most of what was needed; the next call finds everything in one place.
    if (blocks_.size() > 1) blocks_.erase(blocks_.begin(), blocks_.end() - 1);
    if (blocks_.back().size > kMostKept) blocks_.clear();
    block_ = used_ = 0;
}

}  // namespace fastode
