// Accepted steps of a fused solve: appended by several threads, then laid out sample by sample.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/pages.h"

namespace fastode {

template <class T>
class TileRecord;

// The steps that one thread found, in the order in which it found them.
template <class T>
class TileArena {
public:
    explicit TileArena(TileRecord<T>& record);

    // Appends step number `number` of a sample; returns where its state goes, or null if that is not kept.
    T* append(int64_t sample, int64_t number, double t, double t_next, double h) {
        if (in_block_ == kBlock) next_block();
        Step& step = blocks_.back()[in_block_++];
        step = {sample, number, -1, t, t_next, h};
        ++n_steps_;
        if (!kept(number)) return nullptr;
        if (rows_in_use_ == static_cast<int64_t>(chunks_.size()) << chunk_shift_) {
            more_rows();
            if (!kept(number)) return nullptr;  // the spacing may have grown
        }
        step.state = rows_in_use_;
        return row(rows_in_use_++);
    }

private:
    friend class TileRecord<T>;
    static constexpr int64_t kBlock = 1024;
    struct Step {
        int64_t sample, number, state;  // state: its row, -1 if it is not kept
        double t, t_next, h;
    };

    // A division is most of what a step of a small system costs here.
    bool kept(int64_t number) const { return every_ == 1 || number % every_ == 0; }
    T* row(int64_t index) const {
        const int64_t mask = (int64_t{1} << chunk_shift_) - 1;
        return chunks_[static_cast<size_t>(index >> chunk_shift_)] + (index & mask) * width_;
    }
    void next_block();
    void more_rows();
    void thin(int64_t every);
    void* take(size_t bytes);

    TileRecord<T>& record_;
    int64_t width_, every_;
    int chunk_shift_;  // a chunk has 2^chunk_shift_ rows
    int64_t in_block_ = kBlock, n_steps_ = 0, rows_in_use_ = 0, rows_reported_ = 0;
    std::vector<Pages> pages_;  // hold the blocks and chunks
    size_t used_ = 0;           // bytes of the last
    std::vector<Step*> blocks_;
    std::vector<T*> chunks_;
};

// Of sample b's steps 0, 1, 2, ... the state is kept where the number is a multiple of `every`, which doubles when the
// states would exceed max_bytes (0: no limit), with the meaning of cpu/step_record.h. Threads double it on what they
// know, which is never too much; `finish` settles it by the counts, so that it does not depend on the threads.
template <class T>
class TileRecord {
public:
    TileRecord(int64_t batch, int64_t width, int64_t every, int64_t max_bytes, int threads);

    TileArena<T>& arena(int slot) { return *arenas_[static_cast<size_t>(slot)]; }

    // count: accepted steps of each sample. To be called once, after the last append.
    void finish(const int64_t* count);

    int64_t steps() const { return n_steps_; }
    int64_t states() const { return n_states_; }
    int64_t every() const { return every_.load(std::memory_order_relaxed); }
    bool replays() const { return replays_; }
    int64_t batch() const { return batch_; }

    // offsets (batch + 1), table (steps, 3): t, t_next, h; state_offsets (batch + 1), states (states, width).
    void write(int64_t* offsets, double* table, int64_t* state_offsets, T* states) const;

private:
    friend class TileArena<T>;
    // Called by an arena with the rows it holds at spacing `every`; returns the spacing it should have.
    int64_t report(int64_t every, int64_t rows, int64_t before);

    int64_t batch_, width_, max_bytes_;
    const bool replays_;
    std::atomic<int64_t> every_;
    std::mutex mutex_;
    int64_t rows_ = 0;  // rows of the arenas that have the present spacing
    std::vector<std::unique_ptr<TileArena<T>>> arenas_;
    std::vector<int64_t> count_;
    int64_t n_steps_ = 0, n_states_ = 0;
};

}  // namespace fastode
