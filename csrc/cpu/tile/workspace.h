// Scratch memory of a thread, kept between calls: a solve of one small sample must not pay for allocations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastode {

// A stack of memory. What was taken since a Scope began is given back when it ends.
class Workspace {
public:
    static Workspace& of_this_thread();

    // n elements, 64-byte aligned, readable for 64 bytes more; not cleared.
    template <class T>
    T* take(int64_t n) {
        return static_cast<T*>(take_bytes(static_cast<size_t>(n) * sizeof(T)));
    }

    class Scope {
    public:
        explicit Scope(Workspace& workspace) : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {
            ++workspace.depth_;
        }
        ~Scope() { workspace_.leave(block_, used_); }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        Workspace& workspace_;
        size_t block_, used_;
    };

private:
    struct Block {
        std::unique_ptr<char[]> memory;
        size_t size;
    };
    void* take_bytes(size_t n);
    void leave(size_t block, size_t used);

    std::vector<Block> blocks_;
    size_t block_ = 0, used_ = 0;  // the block in use and how much of it
    int depth_ = 0;
};

}  // namespace fastode
