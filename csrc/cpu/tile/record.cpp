#include "cpu/tile/record.h"

#include <algorithm>

#include "core/thread_pool.h"

namespace fastode {

namespace {

// The power of two of rows that a chunk of some 2^14 numbers has.
int chunk_shift(int64_t width) {
    int shift = 4;
    while (shift < 14 && width << (shift + 1) <= int64_t{1} << 14) ++shift;
    return shift;
}

template <class T>
void copy_row(const T* from, int64_t width, T* to) {
    if (width >= 16) return static_cast<void>(std::copy_n(from, width, to));
    for (int64_t i = 0; i < width; ++i) {
        to[i] = from[i];
        __asm__ volatile("");  // or the compiler calls memmove, which takes longer
    }
}

}  // namespace

template <class T>
TileArena<T>::TileArena(TileRecord<T>& record)
    : record_(record), width_(record.width_), every_(record.every()), chunk_shift_(chunk_shift(record.width_)) {}

// Larger pieces the more was taken: few for a long record, little for a short one.
template <class T>
void* TileArena<T>::take(size_t bytes) {
    constexpr size_t kFirst = size_t{1} << 17, kLargest = size_t{1} << 23;
    bytes = (bytes + 63) / 64 * 64;
    if (pages_.empty() || used_ + bytes > pages_.back().size()) {
        const size_t usual = pages_.empty() ? kFirst : std::min(kLargest, 2 * pages_.back().size());
        pages_.emplace_back(std::max(usual, bytes));
        used_ = 0;
    }
    void* const result = static_cast<char*>(pages_.back().data()) + used_;
    used_ += bytes;
    return result;
}

template <class T>
void TileArena<T>::next_block() {
    blocks_.push_back(static_cast<Step*>(take(sizeof(Step) * kBlock)));
    in_block_ = 0;
}

template <class T>
void TileArena<T>::more_rows() {
    for (;;) {
        const int64_t every = record_.report(every_, rows_in_use_, rows_reported_);
        if (every == every_) break;
        thin(every);
        rows_reported_ = 0;
    }
    rows_reported_ = rows_in_use_;
    while (rows_in_use_ >= static_cast<int64_t>(chunks_.size()) << chunk_shift_) {
        const auto width = static_cast<size_t>(std::max<int64_t>(1, width_));
        chunks_.push_back(static_cast<T*>(take((width << chunk_shift_) * sizeof(T))));
    }
}

template <class T>
void TileArena<T>::thin(int64_t every) {
    every_ = every;
    int64_t n_kept = 0;
    for (size_t b = 0; b < blocks_.size(); ++b) {
        const int64_t n = b + 1 < blocks_.size() ? kBlock : in_block_;
        for (int64_t i = 0; i < n; ++i) {
            Step& step = blocks_[b][i];
            if (step.state < 0) continue;
            if (!kept(step.number)) {
                step.state = -1;
                continue;
            }
            if (step.state != n_kept) std::copy_n(row(step.state), width_, row(n_kept));
            step.state = n_kept++;
        }
    }
    rows_in_use_ = n_kept;  // the other rows are used again
}

template <class T>
TileRecord<T>::TileRecord(int64_t batch, int64_t width, int64_t every, int64_t max_bytes, int threads)
    : batch_(batch), width_(width), max_bytes_(max_bytes), replays_(every > 1 || max_bytes > 0), every_(every) {
    for (int i = 0; i < threads; ++i) arenas_.emplace_back(new TileArena<T>(*this));
}

template <class T>
int64_t TileRecord<T>::report(int64_t every, int64_t rows, int64_t before) {
    if (max_bytes_ == 0) return every;
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t present = this->every();
    if (every != present) return present;
    rows_ += rows - before;
    const int64_t row_bytes = width_ * static_cast<int64_t>(sizeof(T));
    // One row for each sample always stays: more than that many means that doubling gains something.
    if (rows_ * row_bytes <= max_bytes_ || rows_ <= batch_) return present;
    rows_ = 0;
    every_.store(2 * present, std::memory_order_relaxed);
    return 2 * present;
}

template <class T>
void TileRecord<T>::finish(const int64_t* count) {
    count_.assign(count, count + batch_);
    int64_t every = this->every(), most = 0;
    n_steps_ = 0;
    for (const int64_t n : count_) {
        n_steps_ += n;
        most = std::max(most, n);
    }
    const auto rows = [this](int64_t spacing) {
        int64_t total = 0;
        for (const int64_t n : count_) total += (n + spacing - 1) / spacing;
        return total;
    };
    n_states_ = rows(every);
    const int64_t row_bytes = width_ * static_cast<int64_t>(sizeof(T));
    while (max_bytes_ > 0 && n_states_ * row_bytes > max_bytes_ && every < most) {
        every *= 2;
        n_states_ = rows(every);
    }
    // The same states, in blocks that are no longer than a solve: a backward pass has memory for one.
    every_.store(std::min(every, std::max<int64_t>(1, most)), std::memory_order_relaxed);
}

template <class T>
void TileRecord<T>::write(int64_t* offsets, double* table, int64_t* state_offsets, T* states) const {
    const int64_t spacing = every();
    offsets[0] = state_offsets[0] = 0;
    for (int64_t b = 0; b < batch_; ++b) {
        const int64_t n = count_[static_cast<size_t>(b)];
        offsets[b + 1] = offsets[b] + n;
        state_offsets[b + 1] = state_offsets[b] + (n + spacing - 1) / spacing;
    }
    struct Piece {
        const TileArena<T>* arena;
        size_t block;
    };
    std::vector<Piece> pieces;
    for (const auto& arena : arenas_) {
        for (size_t i = 0; i < arena->blocks_.size(); ++i) pieces.push_back({arena.get(), i});
    }
    const auto write_piece = [&](int64_t index, int) {
        const TileArena<T>& arena = *pieces[static_cast<size_t>(index)].arena;
        const size_t number_of_block = pieces[static_cast<size_t>(index)].block;
        const auto* const steps = arena.blocks_[number_of_block];
        const int64_t n = number_of_block + 1 < arena.blocks_.size() ? TileArena<T>::kBlock : arena.in_block_;
        for (int64_t i = 0; i < n; ++i) {
            const auto& step = steps[i];
            double* row = table + (offsets[step.sample] + step.number) * 3;
            row[0] = step.t;
            row[1] = step.t_next;
            row[2] = step.h;
            const int64_t place = spacing == 1 ? step.number : step.number / spacing;
            if (place * spacing != step.number) continue;
            copy_row(arena.row(step.state), width_, states + (state_offsets[step.sample] + place) * width_);
        }
    };
    const int64_t volume = n_states_ * width_ + 3 * n_steps_;
    parallel_chunks(static_cast<int64_t>(pieces.size()), volume > 65536 ? get_num_threads() : 1, write_piece);
}

template class TileArena<float>;
template class TileArena<double>;
template class TileRecord<float>;
template class TileRecord<double>;

}  // namespace fastode
