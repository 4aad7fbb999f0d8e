#include "cpu/step_walker.h"

#include <algorithm>
#include <utility>

#include "core/interpolant.h"
#include "core/thread_pool.h"
#include "cpu/combine.h"

namespace fastode {
namespace {

constexpr int64_t kChunk = 16384;  // elements of one piece of work

}  // namespace

template <class T>
StepWalker<T>::StepWalker(std::shared_ptr<const StepRecord<T>> record, const OutputGradients<T>& outputs,
                          std::vector<int64_t> samples)
    : record_(std::move(record)), outputs_(outputs), samples_(std::move(samples)) {}

template <class T>
void StepWalker<T>::states(int64_t j, int64_t n, T* y) const {
    const int64_t width = outputs_.width, every = record_->every();
    for (int64_t i = 0; i < n; ++i) {
        const int64_t sample = samples_[static_cast<size_t>(i)];
        const int64_t last = record_->count()[static_cast<size_t>(sample)] - 1;
        std::copy_n(record_->state(sample, std::min(j, last / every * every)), width, y + i * width);
    }
}

template <class T>
void StepWalker<T>::steps(int64_t j, int64_t n, double* t, double* h) const {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t sample = samples_[static_cast<size_t>(i)];
        const bool standing = !took(static_cast<size_t>(i), j);
        const int64_t position =
            record_->position(sample, standing ? record_->count()[static_cast<size_t>(sample)] - 1 : j);
        t[i] = standing ? record_->t_next(position) : record_->t(position);
        h[i] = standing ? 0.0 : record_->h(position);
    }
}

template <class T>
int64_t StepWalker<T>::first_output_after(double t, double direction, int64_t sample) const {
    int64_t low = 0, high = outputs_.n_times;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (direction * (time(middle, sample) - t) > 0.0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

template <class T>
bool StepWalker<T>::outputs(int64_t j, int64_t n, T* p, T* g) const {
    const int64_t width = outputs_.width;
    bool inside = outputs_.grad_coefs != nullptr;
    for (int64_t i = 0; i < n && !inside; ++i) {
        if (!took(static_cast<size_t>(i), j)) continue;
        const int64_t sample = samples_[static_cast<size_t>(i)];
        const int64_t position = record_->position(sample, j);
        const double direction = record_->h(position) > 0.0 ? 1.0 : -1.0;
        const int64_t e = first_output_after(record_->t(position), direction, sample);
        inside = e < outputs_.n_times && direction * (record_->t_next(position) - time(e, sample)) > 0.0;
    }
    if (inside) std::fill_n(g, (outputs_.degree + 1) * n * width, T(0));
    parallel_for(n, std::max<int64_t>(1, kChunk / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (!took(static_cast<size_t>(i), j)) continue;
            const int64_t sample = samples_[static_cast<size_t>(i)];
            const int64_t position = record_->position(sample, j);
            const double t = record_->t(position), t_next = record_->t_next(position), h = record_->h(position);
            const double direction = h > 0.0 ? 1.0 : -1.0;
            for (int64_t e = first_output_after(t, direction, sample);
                 e < outputs_.n_times && direction * (t_next - time(e, sample)) >= 0.0; ++e) {
                const T* grad = outputs_.grad_ys + (e * outputs_.batch + sample) * width;
                if (time(e, sample) == t_next) {
                    for (int64_t k = 0; k < width; ++k) p[i * width + k] += grad[k];
                    continue;
                }
                const double theta = (time(e, sample) - t) / h;
                double phi[kMaxTerms];
                bernstein_basis(theta, outputs_.degree, phi);
                for (int m = 0; m <= outputs_.degree; ++m) {
                    const T factor = m == 0 ? T(1) : static_cast<T>(phi[m - 1]);
                    T* sum = g + (m * n + i) * width;
                    for (int64_t k = 0; k < width; ++k) sum[k] += factor * grad[k];
                }
            }
            if (outputs_.grad_coefs == nullptr) continue;
            for (int m = 0; m <= outputs_.degree; ++m) {
                const T* grad = outputs_.grad_coefs + (position * (outputs_.degree + 1) + m) * width;
                T* sum = g + (m * n + i) * width;
                for (int64_t k = 0; k < width; ++k) sum[k] += grad[k];
            }
        }
    });
    return inside;
}

template class StepWalker<float>;
template class StepWalker<double>;

}  // namespace fastode
