#include "cpu/step_record.h"

#include <algorithm>

namespace fastode {

template <class T>
int64_t StepRecord<T>::rows_wanted(const std::vector<int64_t>& samples) const {
    int64_t rows = n_rows_;
    for (const int64_t sample : samples) rows += count_[static_cast<size_t>(sample)] % every_ == 0;
    return rows;
}

template <class T>
void StepRecord<T>::reserve(const std::vector<int64_t>& samples) {
    if (every_ == 0) return;
    int64_t rows = rows_wanted(samples);
    const int64_t row_bytes = width_ * static_cast<int64_t>(sizeof(T));
    // Past the largest number only the first state of each sample is left, and thinning can gain nothing more.
    while (max_bytes_ > 0 && rows * row_bytes > max_bytes_ &&
           every_ <= *std::max_element(count_.begin(), count_.end())) {
        thin();
        rows = rows_wanted(samples);
    }
    while (static_cast<int64_t>(chunks_.size()) * rows_per_chunk_ < rows) {
        chunks_.emplace_back(new T[static_cast<size_t>(rows_per_chunk_ * width_)]);  // not cleared
    }
}

template <class T>
void StepRecord<T>::thin() {
    every_ *= 2;
    int64_t kept = 0;
    for (size_t i = 0; i < row_.size(); ++i) {
        if (row_[i] < 0) continue;
        if (number_[i] % every_ != 0) {
            row_[i] = -1;
            continue;
        }
        if (row_[i] != kept) std::copy_n(row(row_[i]), width_, row(kept));
        row_[i] = kept++;
    }
    n_rows_ = kept;
    const int64_t chunks = (kept + rows_per_chunk_ - 1) / rows_per_chunk_;
    chunks_.resize(static_cast<size_t>(chunks));
}

template <class T>
T* StepRecord<T>::append(int64_t sample, double t, double t_next, double h) {
    const int64_t number = count_[static_cast<size_t>(sample)]++;
    sample_.push_back(sample);
    number_.push_back(number);
    t_.push_back(t);
    t_next_.push_back(t_next);
    h_.push_back(h);
    const bool keep = every_ > 0 && number % every_ == 0;
    row_.push_back(keep ? n_rows_ : -1);
    return keep ? row(n_rows_++) : nullptr;
}

template <class T>
void StepRecord<T>::finish() {
    offset_.assign(count_.size() + 1, 0);
    for (size_t b = 0; b < count_.size(); ++b) offset_[b + 1] = offset_[b] + count_[b];
    order_.resize(sample_.size());
    for (size_t i = 0; i < sample_.size(); ++i) {
        order_[static_cast<size_t>(offset_[static_cast<size_t>(sample_[i])] + number_[i])] = static_cast<int64_t>(i);
    }
}

template class StepRecord<float>;
template class StepRecord<double>;

}  // namespace fastode
