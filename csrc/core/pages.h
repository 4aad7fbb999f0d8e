// Large pieces of memory that calls need and give back: kept for the next call, in huge pages where the system has
// them. Memory fresh from the system costs a page fault for every 4 KiB, more than filling it does.
#pragma once

#include <cstddef>
#include <utility>

namespace fastode {

// At least `bytes` bytes, aligned to 64, not cleared; given back when it is destroyed. Up to 64 MiB that were given
// back stay with the process. Throws std::bad_alloc.
class Pages {
public:
    Pages() = default;
    explicit Pages(size_t bytes);
    ~Pages() { release(); }
    Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Pages& operator=(Pages&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    void* data() const { return data_; }
    size_t size() const { return size_; }

private:
    void release() noexcept;

    void* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace fastode
