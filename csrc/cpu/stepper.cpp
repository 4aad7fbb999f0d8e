#include "cpu/stepper.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/interpolant.h"
#include "core/thread_pool.h"
#include "cpu/combine.h"
#include "cpu/error_norm.h"

namespace fastode {
namespace {

constexpr int64_t kThreadAbove = 32768;  // elements; below this waking a thread costs more than it brings
constexpr int64_t kChunk = 16384;        // elements of one piece of work

void run(const CombineArgs<float>& a, int64_t begin, int64_t end) { combine_kernels().f32(a, begin, end); }
void run(const CombineArgs<double>& a, int64_t begin, int64_t end) { combine_kernels().f64(a, begin, end); }
void run(const ErrorNormArgs<float>& a, double* out, int64_t begin, int64_t end) {
    error_norm_kernels().f32(a, out, begin, end);
}
void run(const ErrorNormArgs<double>& a, double* out, int64_t begin, int64_t end) {
    error_norm_kernels().f64(a, out, begin, end);
}

// f(begin, end) over n rows of `width` elements, on several threads where it pays.
template <class F>
void over_rows(int64_t n, int64_t width, F&& f) {
    if (n * width <= kThreadAbove) {
        f(int64_t{0}, n);
    } else {
        parallel_for(n, std::max<int64_t>(1, kChunk / width), f);
    }
}

// The m terms coef[j] x_j of a kernel's arguments, without those whose coefficient is zero.
template <class Args, class T>
void set_terms(Args& args, const double* coef, int m, const T* const* x) {
    args.n_terms = 0;
    for (int j = 0; j < m; ++j) {
        if (coef[j] == 0.0) continue;
        args.coef[args.n_terms] = static_cast<T>(coef[j]);
        args.x[args.n_terms++] = x[j];
    }
}

bool is_finite(double x) { return x - x == 0.0; }

}  // namespace

template <class T>
Stepper<T>::Stepper(const SolveSpec<T>& spec, Method method, const StepControl& control,
                    std::shared_ptr<StepRecord<T>> record)
    : spec_(spec), method_(std::move(method)), control_(control), record_(std::move(record)) {
    const auto batch = static_cast<size_t>(spec.batch);
    stats_.status.assign(batch, static_cast<int64_t>(Status::running));
    stats_.n_accepted.assign(batch, 0);
    stats_.n_rejected.assign(batch, 0);
    stats_.n_evals.assign(batch, 1);
    stats_.reached.assign(batch, 0.0);
    stats_.last_step.assign(batch, std::numeric_limits<double>::quiet_NaN());
    stats_.last_ratio = stats_.last_step;
    stride_ = spec.batch * spec.width;
    y_.resize(static_cast<size_t>(stride_));
    k_.resize(static_cast<size_t>(stride_ * method_.s));
    for (auto* scratch : {&step_, &ratio_, &d1_, &h0_}) scratch->resize(batch);
}

template <class T>
void Stepper<T>::combine(T* out, const T* base, const double* scale, const double* coef, int m, const T* const* x,
                         int64_t n) {
    CombineArgs<T> args;
    args.out = out;
    args.base = base;
    args.scale = scale;
    args.d = spec_.width;
    set_terms(args, coef, m, x);
    if (spec_.width == 0) return;
    if (args.n_terms == 0) {
        if (base == nullptr) {
            std::fill_n(out, n * spec_.width, T(0));
        } else if (out != base) {
            std::copy_n(base, n * spec_.width, out);
        }
        return;
    }
    over_rows(n, spec_.width, [&args](int64_t begin, int64_t end) { run(args, begin, end); });
}

template <class T>
void Stepper<T>::norms(const T* y1, const T* last, const double* coef, int m, const T* const* x, const double* scale,
                       double* out) {
    ErrorNormArgs<T> args;
    args.y = y_.data();
    args.y1 = y1;
    args.last = last;
    args.rtol = spec_.rtol;
    args.atol = spec_.atol;
    args.scale = scale;
    args.d = spec_.width;
    set_terms(args, coef, m, x);
    over_rows(lanes(), spec_.width, [&args, out](int64_t begin, int64_t end) { run(args, out, begin, end); });
}

template <class T>
void Stepper<T>::start(const T* y0, const T* k1) {
    const int64_t batch = spec_.batch, width = spec_.width;
    lane_.resize(static_cast<size_t>(batch));
    std::copy_n(y0, stride_, y_.data());
    std::copy_n(k1, stride_, k(0));
    std::fill(step_.begin(), step_.end(), 0.0);
    norms(y_.data(), k(0), nullptr, 0, nullptr, step_.data(), ratio_.data());
    for (int64_t b = 0; b < batch; ++b) {
        Lane& lane = lane_[static_cast<size_t>(b)];
        lane = Lane{};
        lane.sample = b;
        lane.t = time(0, b);
        lane.end = time(spec_.n_times - 1, b);
        lane.direction = lane.end > lane.t ? 1.0 : lane.end < lane.t ? -1.0 : 0.0;
        lane.previous = lane.before = 1.0;
        while (lane.next_output < spec_.n_times && time(lane.next_output, b) == lane.t) {
            std::copy_n(y0 + b * width, width, spec_.ys + (lane.next_output++ * batch + b) * width);
        }
        const bool finite = is_finite(ratio_[static_cast<size_t>(b)]);
        const Status status = lane.direction == 0.0 ? Status::success : finite ? Status::running : Status::non_finite;
        stats_.status[static_cast<size_t>(b)] = static_cast<int64_t>(status);
        stats_.reached[static_cast<size_t>(b)] = lane.t;
        if (spec_.step_size != nullptr) {
            lane.h = spec_.step_size[b];
        } else if (spec_.first_step > 0.0) {
            lane.h = bounded_step(control_, spec_.first_step, lane.t);
        }
    }
}

template <class T>
void Stepper<T>::probe(T* t, T* y) {
    const double one = 1.0;
    const T* x[1] = {y_.data()};
    std::vector<double> unit(static_cast<size_t>(lanes()), 1.0);
    std::vector<double> d0(static_cast<size_t>(lanes()));
    norms(y_.data(), y_.data(), &one, 1, x, unit.data(), d0.data());
    x[0] = k(0);
    norms(y_.data(), y_.data(), &one, 1, x, unit.data(), d1_.data());
    for (size_t i = 0; i < lane_.size(); ++i) {
        const Lane& lane = lane_[i];
        h0_[i] = probe_step(d0[i], d1_[i], std::abs(lane.end - lane.t));
        step_[i] = lane.direction * h0_[i];
        t[i] = static_cast<T>(lane.t + step_[i]);
    }
    combine(y, y_.data(), step_.data(), &one, 1, x, lanes());
}

template <class T>
void Stepper<T>::choose_first_step(const T* value) {
    const double coef[2] = {1.0, -1.0};
    const T* x[2] = {value, k(0)};
    std::vector<double> unit(static_cast<size_t>(lanes()), 1.0);
    std::vector<double> d2(static_cast<size_t>(lanes()));
    norms(y_.data(), y_.data(), coef, 2, x, unit.data(), d2.data());
    for (size_t i = 0; i < lane_.size(); ++i) {
        Lane& lane = lane_[i];
        const double h = first_step(h0_[i], d1_[i], d2[i] / h0_[i], control_.exponent);
        lane.h = bounded_step(control_, h, lane.t);
        ++stats_.n_evals[static_cast<size_t>(lane.sample)];
    }
}

template <class T>
void Stepper<T>::begin_step() {
    for (size_t i = 0; i < lane_.size(); ++i) {
        Lane& lane = lane_[i];
        lane.attempt = {0.0, lane.t, false};
        if (stats_.status[static_cast<size_t>(lane.sample)] == static_cast<int64_t>(Status::running)) {
            const bool to_output = ends_at_output(control_, lane.h);
            const double target = to_output ? time(lane.next_output, lane.sample) : lane.end;
            lane.attempt = plan_attempt(control_, lane.t, lane.h, lane.direction, target);
        }
        step_[i] = lane.attempt.step;
    }
}

template <class T>
void Stepper<T>::stage(int i, const T* value, T* t, T* y) {
    const int64_t n = lanes();
    if (i == 1) {
        begin_step();
    } else {
        std::copy_n(value, n * spec_.width, k(i - 1));
    }
    const T* x[kMaxTerms];
    for (int j = 0; j < i; ++j) x[j] = k(j);
    const double c = method_.c[static_cast<size_t>(i)];
    for (size_t l = 0; l < lane_.size(); ++l) t[l] = static_cast<T>(lane_[l].t + c * step_[l]);
    combine(y, y_.data(), step_.data(), method_.a.data() + static_cast<ptrdiff_t>(i) * method_.s, i, x, n);
}

// Accepts or rejects the attempt of a running lane; sets its next step size and its status.
template <class T>
bool Stepper<T>::decide(Lane& lane, double ratio) {
    int64_t& status = stats_.status[static_cast<size_t>(lane.sample)];
    stats_.n_evals[static_cast<size_t>(lane.sample)] += method_.s - 1;
    const bool finite = ratio == ratio;
    const Attempt& attempt = lane.attempt;
    const double tried = tried_size(attempt.step, lane.h);
    const bool adaptive = spec_.step_size == nullptr;
    const bool accepted = attempt.step != 0.0 && (adaptive ? ratio <= 1.0 : finite);
    if (!accepted && (!adaptive || tried <= shortest_step(control_, lane.t))) {
        status = static_cast<int64_t>(finite ? Status::step_underflow : Status::non_finite);
    }
    if (adaptive) {
        const double factor = step_factor(control_, ratio, lane.previous, lane.before, accepted);
        const bool kept = accepted && attempt.cut;
        const double size = kept ? std::max(tried * factor, lane.h) : tried * factor;
        lane.h = bounded_step(control_, size, accepted ? attempt.t_next : lane.t);
        if (accepted && !kept) {
            lane.before = lane.previous;
            lane.previous = ratio;
        }
    } else {
        lane.h = fixed_step_after(spec_.step_size[lane.sample], lane.h, attempt.step, attempt.cut);
    }
    return accepted;
}

template <class T>
int64_t Stepper<T>::finish_step(const T* y1, const T* value) {
    const int64_t n = lanes(), width = spec_.width;
    const T* x[kMaxTerms];
    for (int j = 0; j + 1 < method_.s; ++j) x[j] = k(j);
    x[method_.s - 1] = value;
    const int m = spec_.step_size == nullptr ? method_.s : 0;
    norms(y1, value, method_.e.data(), m, x, step_.data(), ratio_.data());

    accepting_.clear();
    for (size_t i = 0; i < lane_.size(); ++i) {
        Lane& lane = lane_[i];
        const auto b = static_cast<size_t>(lane.sample);
        lane.accepted = false;
        if (stats_.status[b] != static_cast<int64_t>(Status::running)) continue;
        lane.accepted = decide(lane, ratio_[i]);
        stats_.last_step[b] = step_[i];
        if (m > 0) stats_.last_ratio[b] = ratio_[i];
        ++(lane.accepted ? stats_.n_accepted : stats_.n_rejected)[b];
        if (lane.accepted) accepting_.push_back(lane.sample);
    }
    if (record_ != nullptr) record_->reserve(accepting_);
    const int64_t row_size = (method_.degree + 1) * width;
    if (spec_.dense) {
        dense_.resize(dense_.size() + accepting_.size() * static_cast<size_t>(row_size));
    }
    int64_t row = record_ != nullptr ? record_->steps() : 0;
    for (Lane& lane : lane_) {
        lane.keep = nullptr;
        lane.row = row;
        if (!lane.accepted) continue;
        if (record_ != nullptr)
            lane.keep = record_->append(lane.sample, lane.t, lane.attempt.t_next, lane.attempt.step);
        ++row;
    }
    over_rows(n, width * method_.s, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Lane& lane = lane_[static_cast<size_t>(i)];
            if (lane.accepted) store(lane, i, y1, value);
        }
    });

    int64_t n_running = 0;
    for (Lane& lane : lane_) {
        const auto b = static_cast<size_t>(lane.sample);
        int64_t& status = stats_.status[b];
        if (lane.accepted) {
            lane.t = stats_.reached[b] = lane.attempt.t_next;
            if (lane.t == lane.end) status = static_cast<int64_t>(Status::success);
        }
        if (status != static_cast<int64_t>(Status::running)) continue;
        if (stats_.n_accepted[b] + stats_.n_rejected[b] >= spec_.max_steps) {
            status = static_cast<int64_t>(Status::max_steps);
        } else {
            ++n_running;
        }
    }
    return n_running;
}

// What follows an accepted step of one lane: record, polynomial, outputs, the new state.
template <class T>
void Stepper<T>::store(Lane& lane, int64_t index, const T* y1, const T* value) {
    const int64_t width = spec_.width, s = method_.s;
    T* y = y_.data() + index * width;
    const T* new_y = y1 + index * width;
    const T* x[kMaxTerms];
    for (int j = 0; j + 1 < s; ++j) x[j] = k(j) + index * width;
    x[s - 1] = value + index * width;
    if (lane.keep != nullptr) std::copy_n(y, width, lane.keep);

    CombineArgs<T> args;
    args.d = width;
    args.scale = &step_[static_cast<size_t>(index)];
    const auto combine_row = [&](T* out, const T* base, const double* weights) {
        args.out = out;
        args.base = base;
        set_terms(args, weights, s, x);
        if (args.n_terms > 0) {
            run(args, 0, 1);
        } else if (base != nullptr) {
            std::copy_n(base, width, out);
        } else {
            std::fill_n(out, width, T(0));
        }
    };
    double weights[kMaxTerms], phi[kMaxTerms];
    if (spec_.dense) {
        T* coefs = dense_.data() + lane.row * (method_.degree + 1) * width;
        std::copy_n(y, width, coefs);
        for (int m = 0; m < method_.degree; ++m) {
            for (int j = 0; j < s; ++j) weights[j] = method_.q[static_cast<size_t>(j * method_.degree + m)];
            combine_row(coefs + (m + 1) * width, nullptr, weights);
        }
    }
    for (; lane.next_output < spec_.n_times; ++lane.next_output) {
        const double t = time(lane.next_output, lane.sample);
        if (lane.direction * (lane.attempt.t_next - t) < 0.0) break;
        T* out = spec_.ys + (lane.next_output * spec_.batch + lane.sample) * width;
        if (t == lane.attempt.t_next) {
            std::copy_n(new_y, width, out);
            continue;
        }
        const double theta = (t - lane.t) / lane.attempt.step;
        bernstein_basis(theta, method_.degree, phi);
        for (int j = 0; j < s; ++j) {
            weights[j] = 0.0;
            for (int m = 0; m < method_.degree; ++m) {
                weights[j] += method_.q[static_cast<size_t>(j * method_.degree + m)] * phi[m];
            }
        }
        combine_row(out, y, weights);
    }
    std::copy_n(new_y, width, y);
    std::copy_n(x[s - 1], width, k(0) + index * width);
}

template <class T>
std::vector<int64_t> Stepper<T>::running() const {
    std::vector<int64_t> kept;
    for (size_t i = 0; i < lane_.size(); ++i) {
        const auto b = static_cast<size_t>(lane_[i].sample);
        if (stats_.status[b] == static_cast<int64_t>(Status::running)) kept.push_back(static_cast<int64_t>(i));
    }
    return kept;
}

template <class T>
void Stepper<T>::compact() {
    const int64_t width = spec_.width;
    int64_t to = 0;
    for (const int64_t from : running()) {
        if (from != to) {
            lane_[static_cast<size_t>(to)] = lane_[static_cast<size_t>(from)];
            std::copy_n(y_.data() + from * width, width, y_.data() + to * width);
            std::copy_n(k(0) + from * width, width, k(0) + to * width);
        }
        ++to;
    }
    lane_.resize(static_cast<size_t>(to));
}

template class Stepper<float>;
template class Stepper<double>;

}  // namespace fastode
