// The accepted steps of a batch, and the states at the start of some of them: what the discrete adjoint needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastode {

// Steps of all samples in the order in which they were accepted. Of sample b's steps 0, 1, 2, ... the state is kept
// where the number is a multiple of `every`; `every` doubles when the states would exceed the budget.
template <class T>
class StepRecord {
public:
    // max_bytes: budget for the states; 0 means none. every = 0 keeps no states at all.
    StepRecord(int64_t batch, int64_t width, int64_t every, int64_t max_bytes)
        : width_(width),
          every_(every),
          max_bytes_(max_bytes),
          count_(static_cast<size_t>(batch), 0),
          rows_per_chunk_(std::max<int64_t>(64, (int64_t{1} << 18) / std::max<int64_t>(1, width))) {}

    // Makes room for one step of each of these samples, thinning the states if the budget asks for it.
    void reserve(const std::vector<int64_t>& samples);

    // Appends a step; returns where its state goes, or null if that is not kept.
    T* append(int64_t sample, double t, double t_next, double h);

    // Sorts the steps by sample; to be called once, after the last append.
    void finish();

    int64_t steps() const { return static_cast<int64_t>(sample_.size()); }
    int64_t every() const { return every_; }
    int64_t state_bytes() const { return n_rows_ * width_ * static_cast<int64_t>(sizeof(T)); }
    const std::vector<int64_t>& count() const { return count_; }

    // Position of step number j of a sample in the order of acceptance.
    int64_t position(int64_t sample, int64_t j) const {
        return order_[static_cast<size_t>(offset_[static_cast<size_t>(sample)] + j)];
    }
    double t(int64_t position) const { return t_[static_cast<size_t>(position)]; }
    double t_next(int64_t position) const { return t_next_[static_cast<size_t>(position)]; }
    double h(int64_t position) const { return h_[static_cast<size_t>(position)]; }

    // State at the start of step number j, a multiple of `every`.
    const T* state(int64_t sample, int64_t j) const { return row(row_[static_cast<size_t>(position(sample, j))]); }

private:
    T* row(int64_t index) const {
        return chunks_[static_cast<size_t>(index / rows_per_chunk_)].get() + index % rows_per_chunk_ * width_;
    }
    int64_t rows_wanted(const std::vector<int64_t>& samples) const;
    void thin();

    int64_t width_, every_, max_bytes_;
    std::vector<int64_t> count_;
    int64_t rows_per_chunk_;
    std::vector<int64_t> sample_, number_, row_, order_, offset_;
    std::vector<double> t_, t_next_, h_;
    std::vector<std::unique_ptr<T[]>> chunks_;
    int64_t n_rows_ = 0;
};

}  // namespace fastode
