#include "cpu/tile/record.h"

#include <algorithm>

#include "core/thread_pool.h"

namespace fastode {

template <class T>
TileArena<T>::TileArena(TileRecord<T>& record)
    : record_(record),
      width_(record.width_),
      every_(record.every()),
      rows_per_chunk_(std::max<int64_t>(16, (int64_t{1} << 14) / std::max<int64_t>(1, record.width_))) {}

template <class T>
void TileArena<T>::next_block() {
    blocks_.emplace_back(new Block);  // not cleared
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
    while (rows_in_use_ >= static_cast<int64_t>(chunks_.size()) * rows_per_chunk_) {
        chunks_.emplace_back(new T[static_cast<size_t>(rows_per_chunk_ * std::max<int64_t>(1, width_))]);
    }
}

template <class T>
void TileArena<T>::thin(int64_t every) {
    every_ = every;
    int64_t kept = 0;
    for (size_t b = 0; b < blocks_.size(); ++b) {
        Block& block = *blocks_[b];
        const int64_t n = b + 1 < blocks_.size() ? kBlock : in_block_;
        for (int64_t i = 0; i < n; ++i) {
            int64_t& state = block.state[i];
            if (state < 0) continue;
            if (block.number[i] % every_ != 0) {
                state = -1;
                continue;
            }
            if (state != kept) std::copy_n(row(state), width_, row(kept));
            state = kept++;
        }
    }
    rows_in_use_ = kept;
    const int64_t chunks = (kept + rows_per_chunk_ - 1) / rows_per_chunk_;
    chunks_.resize(static_cast<size_t>(std::min(chunks, static_cast<int64_t>(chunks_.size()))));
}

template <class T>
TileRecord<T>::TileRecord(int64_t batch, int64_t width, int64_t every, int64_t max_bytes, int threads)
    : batch_(batch), width_(width), max_bytes_(max_bytes), every_(every) {
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
    every_.store(every, std::memory_order_relaxed);
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
        const auto& block = *arena.blocks_[number_of_block];
        const int64_t n = number_of_block + 1 < arena.blocks_.size() ? TileArena<T>::kBlock : arena.in_block_;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t sample = block.sample[i], number = block.number[i];
            double* row = table + (offsets[sample] + number) * 3;
            row[0] = block.t[i];
            row[1] = block.t_next[i];
            row[2] = block.h[i];
            if (number % spacing != 0) continue;
            std::copy_n(arena.row(block.state[i]), width_,
                        states + (state_offsets[sample] + number / spacing) * width_);
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
