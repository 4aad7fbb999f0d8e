// The kernels of the `stepped` backend, as text for one group of threads or for one element: for host and device.
// Follows csrc/cpu/stepper.cpp, csrc/cpu/isa/combine.cpp and csrc/cpu/isa/error_norm.cpp operation by operation.
#pragma once

#include "core/interpolant.h"
#include "cuda/group.h"
#include "cuda/step_state.h"

namespace fastode {

FASTODE_HOST_DEVICE inline bool finite(double x) { return x - x == 0.0; }
FASTODE_HOST_DEVICE inline float magnitude(float x) { return fabsf(x); }
FASTODE_HOST_DEVICE inline double magnitude(double x) { return fabs(x); }

// Adds to a counter that other samples may be adding to, and returns what it was before.
FASTODE_HOST_DEVICE inline int64_t take(int64_t* counter, int64_t amount) {
#ifdef __CUDA_ARCH__
    return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(counter),  // NOLINT
                                          static_cast<unsigned long long>(amount)));       // NOLINT
#else
    const int64_t before = *counter;
    *counter += amount;
    return before;
#endif
}

template <class T>
struct SampleState {
    const StepState<T>& a;
    int64_t b;

    FASTODE_HOST_DEVICE double& real(Real row) const { return a.real[row * a.batch + b]; }
    FASTODE_HOST_DEVICE int64_t& whole(Whole row) const { return a.whole[row * a.batch + b]; }
    FASTODE_HOST_DEVICE double time(int64_t e) const { return a.times[e * a.batch + b]; }
    FASTODE_HOST_DEVICE bool is(Status status) const { return whole(kStatus) == static_cast<int64_t>(status); }
    FASTODE_HOST_DEVICE void set(Status status) const { whole(kStatus) = static_cast<int64_t>(status); }
};

template <class T>
FASTODE_HOST_DEVICE inline T sum_terms(const Terms<T>& terms, int64_t at) {
    T sum = T(0);
    for (int j = 0; j < terms.n; ++j) sum = multiply_add(terms.coef[j], terms.x[j][at], sum);
    return sum;
}

// Square of numerator / tolerance of component i; NaN if the new state or the field there is not finite.
template <class T>
FASTODE_HOST_DEVICE inline double error_square(const StepState<T>& a, T numerator, T y, T y1, T last, int64_t i) {
    const T old_size = magnitude(y), new_size = magnitude(y1);
    const T size = new_size > old_size ? new_size : old_size;
    const T raw = multiply_add(a.rtol[i], size, a.atol[i]);
    const T tiny = smallest_normal<T>();
    const auto quotient = static_cast<double>(numerator / (raw > tiny ? raw : tiny));
    return quotient * quotient + static_cast<double>((y1 - y1) + (last - last));
}

template <class T>
FASTODE_HOST_DEVICE inline double mean_root(const StepState<T>& a, double sum) {
    return sqrt(sum / static_cast<double>(a.width > 0 ? a.width : 1));
}

// Size and end of the sample's next attempt; a sample that is done stands still.
template <class T>
FASTODE_HOST_DEVICE inline void plan_attempt(const SampleState<T>& s) {
    s.real(kStep) = 0.0;
    if (!s.is(Status::running)) return;
    const double h = s.real(kNextSize), end = s.real(kEnd);
    const double target = ends_at_output(s.a.control, h) ? s.time(s.whole(kNextOutput)) : end;
    const Attempt attempt = plan_attempt(s.a.control, s.real(kTime), h, s.real(kDirection), target);
    s.real(kStep) = attempt.step;
    s.real(kTarget) = attempt.t_next;
    s.real(kCut) = attempt.cut ? 1.0 : 0.0;
    if (attempt.t_next != end) s.a.counters[kGoingOn] = 1;  // many write it, all the same
}

// State at the start of a solve, and the outputs there. Lane = sample.
template <class T, class Group>
FASTODE_HOST_DEVICE void start_sample(const Group& group, const StepState<T>& a, int64_t b, const T* y0, const T* k1) {
    const SampleState<T> s{a, b};
    const int64_t width = a.width;
    const double poison = group.sum([&](int rank) {
        double sum = 0.0;
        for (int64_t i = rank; i < width; i += Group::kSize) {
            const T y = y0[b * width + i], k = k1[b * width + i];
            a.y[b * width + i] = y;
            a.k[b * width + i] = k;
            sum += static_cast<double>((y - y) + (k - k));
        }
        return sum;
    });
    group.once([&] {
        const double t = s.time(0), end = s.time(a.n_times - 1);
        const double direction = end > t ? 1.0 : end < t ? -1.0 : 0.0;
        s.real(kTime) = t;
        s.real(kEnd) = end;
        s.real(kDirection) = direction;
        s.real(kPrevious) = s.real(kBefore) = 1.0;
        s.real(kStep) = s.real(kNextSize) = s.real(kTarget) = s.real(kCut) = 0.0;
        s.real(kFrom) = s.real(kTo) = s.real(kSize) = 0.0;
        int64_t output = 0;
        while (output < a.n_times && s.time(output) == t) ++output;
        s.whole(kFirstOutput) = 0;
        s.whole(kNextOutput) = output;
        s.whole(kAccepted) = s.whole(kRejected) = s.whole(kTaken) = 0;
        s.whole(kEvals) = 1;
        s.whole(kStepRow) = s.whole(kStateRow) = -1;
        s.set(direction == 0.0 ? Status::success : finite(poison) ? Status::running : Status::non_finite);
        if (s.is(Status::running)) take(a.counters + kRunning, 1);
        if (a.step_size != nullptr) {
            s.real(kNextSize) = a.step_size[b];
            plan_attempt(s);
        } else if (a.first_step > 0.0) {
            s.real(kNextSize) = bounded_step(a.control, a.first_step, t);
            plan_attempt(s);
        }
    });
    group.sync();
    const int64_t outputs = s.whole(kNextOutput);
    group.each([&](int rank) {
        for (int64_t e = 0; e < outputs; ++e) {
            for (int64_t i = rank; i < width; i += Group::kSize) {
                a.ys[(e * a.batch + b) * width + i] = y0[b * width + i];
            }
        }
    });
}

// Time and state of the evaluation that chooses the first step.
template <class T, class Group>
FASTODE_HOST_DEVICE void probe_sample(const Group& group, const StepState<T>& a, int64_t b, T* t, T* y) {
    const SampleState<T> s{a, b};
    const int64_t at = b * a.width;
    const auto norm = [&](const T* x) {
        return mean_root(a, group.sum([&](int rank) {
            double sum = 0.0;
            for (int64_t i = rank; i < a.width; i += Group::kSize) {
                const T y0 = a.y[at + i];
                sum += error_square(a, x[at + i], y0, y0, y0, i);
            }
            return sum;
        }));
    };
    const double d0 = norm(a.y), d1 = norm(a.k);
    const double h0 = probe_step(d0, d1, fabs(s.real(kEnd) - s.real(kTime)));
    const double step = s.real(kDirection) * h0;
    group.once([&] {
        s.real(kProbeStep) = h0;
        s.real(kProbeSlope) = d1;
        t[b] = static_cast<T>(s.real(kTime) + step);
    });
    group.each([&](int rank) {
        for (int64_t i = rank; i < a.width; i += Group::kSize) {
            y[at + i] = multiply_add(static_cast<T>(step), a.k[at + i], a.y[at + i]);
        }
    });
}

template <class T, class Group>
FASTODE_HOST_DEVICE void choose_first_step(const Group& group, const StepState<T>& a, int64_t b, const T* value) {
    const SampleState<T> s{a, b};
    const int64_t at = b * a.width;
    const double d2 = mean_root(a, group.sum([&](int rank) {
        double sum = 0.0;
        for (int64_t i = rank; i < a.width; i += Group::kSize) {
            const T y0 = a.y[at + i];
            sum += error_square(a, value[at + i] - a.k[at + i], y0, y0, y0, i);
        }
        return sum;
    }));
    group.once([&] {
        const double h0 = s.real(kProbeStep);
        const double h = first_step(h0, s.real(kProbeSlope), d2 / h0, a.control.exponent);
        s.real(kNextSize) = bounded_step(a.control, h, s.real(kTime));
        ++s.whole(kEvals);
        plan_attempt(s);
    });
}

// kCount neighbours, read and written at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
    T value[kCount];
};

template <int kCount, class T>
FASTODE_HOST_DEVICE inline Pack<T, kCount> load(const T* from) {
    return *reinterpret_cast<const Pack<T, kCount>*>(from);
}

// Components at, at + 1, ... of stage i of the running attempt, and the value of the stage before it put where it is
// kept. The value may lie where y is to be written: a field may return its argument.
template <int kCount, class T>
FASTODE_HOST_DEVICE inline void stage_elements(const Terms<T>& terms, const T* base, double step, const T* value,
                                               T* keep, T* y, int64_t at) {
    using P = Pack<T, kCount>;
    P newest{};
    if (value != nullptr) {
        newest = load<kCount>(value + at);
        *reinterpret_cast<P*>(keep + at) = newest;
    }
    P sum{};
    for (int j = 0; j < terms.n; ++j) {
        // The newest one, if it is among the terms, is in registers.
        const P x = value != nullptr && terms.x[j] == keep ? newest : load<kCount>(terms.x[j] + at);
        for (int i = 0; i < kCount; ++i) sum.value[i] = multiply_add(terms.coef[j], x.value[i], sum.value[i]);
    }
    P out = load<kCount>(base + at);
    const auto factor = static_cast<T>(step);
    for (int i = 0; i < kCount; ++i) out.value[i] = multiply_add(factor, sum.value[i], out.value[i]);
    *reinterpret_cast<P*>(y + at) = out;
}

template <class T>
FASTODE_HOST_DEVICE inline void stage_time(const StepState<T>& a, double c, T* t, int64_t lane) {
    const SampleState<T> s{a, a.sample[lane]};
    t[lane] = static_cast<T>(s.real(kTime) + c * s.real(kStep));
}

// The sum of error squares over the components first, first + Group::kSize, ... < end of a lane.
template <class T>
FASTODE_HOST_DEVICE inline double error_sum(const StepState<T>& a, const Terms<T>& error, int64_t lane, double step,
                                            const T* y1, const T* last, int64_t first, int64_t end, int stride) {
    const auto factor = static_cast<T>(step);
    double sum = 0.0;
    for (int64_t i = first; i < end; i += stride) {
        const int64_t at = lane * a.width + i;
        sum += error_square(a, factor * sum_terms(error, at), a.y[at], y1[at], last[at], i);
    }
    return sum;
}

// Accepts or rejects the attempt of a sample, gives an accepted step its place in the record, sets the status and plans
// the next attempt.
template <class T>
FASTODE_HOST_DEVICE inline void decide(const StepState<T>& a, int64_t b, double ratio) {
    const SampleState<T> s{a, b};
    s.whole(kTaken) = 0;
    s.whole(kFirstOutput) = s.whole(kNextOutput);
    s.whole(kStepRow) = s.whole(kStateRow) = -1;
    if (!s.is(Status::running)) {
        s.real(kStep) = 0.0;
        return;
    }
    s.whole(kEvals) += a.s - 1;
    const bool known = ratio == ratio;
    const double step = s.real(kStep), h = s.real(kNextSize), t = s.real(kTime), t_next = s.real(kTarget);
    const double tried = tried_size(step, h);
    const bool accepted = step != 0.0 && (a.adaptive ? ratio <= 1.0 : known), cut = s.real(kCut) != 0.0;
    if (!accepted && (!a.adaptive || tried <= shortest_step(a.control, t))) {
        s.set(known ? Status::step_underflow : Status::non_finite);
    }
    if (a.adaptive) {
        const double factor = step_factor(a.control, ratio, s.real(kPrevious), s.real(kBefore), accepted);
        const double grown = tried * factor, size = accepted && cut && grown < h ? h : grown;
        s.real(kNextSize) = bounded_step(a.control, size, accepted ? t_next : t);
        if (accepted && !cut) {
            s.real(kBefore) = s.real(kPrevious);
            s.real(kPrevious) = ratio;
        }
    } else {
        s.real(kNextSize) = fixed_step_after(a.step_size[b], h, step, cut);
    }
    if (accepted) {
        const int64_t number = s.whole(kAccepted)++;
        s.whole(kTaken) = 1;
        s.real(kFrom) = t;
        s.real(kTo) = t_next;
        s.real(kSize) = step;
        if (a.step_chunks != nullptr) {
            const int64_t row = take(a.counters + kSteps, 1);
            const bool keep = a.every > 0 && number % a.every == 0;
            const int64_t state_row = keep ? take(a.counters + kStates, 1) : -1;
            a.step_chunks[row / a.steps_per_chunk][row % a.steps_per_chunk] = {b, number, state_row, t, t_next, step};
            s.whole(kStepRow) = row;
            s.whole(kStateRow) = state_row;
        }
        int64_t output = s.whole(kNextOutput);
        while (output < a.n_times && s.real(kDirection) * (t_next - s.time(output)) >= 0.0) ++output;
        s.whole(kNextOutput) = output;
        s.real(kTime) = t_next;
        if (t_next == s.real(kEnd)) s.set(Status::success);
    } else {
        ++s.whole(kRejected);
    }
    if (s.is(Status::running) && s.whole(kAccepted) + s.whole(kRejected) >= a.max_steps) s.set(Status::max_steps);
    if (!s.is(Status::running)) take(a.counters + kRunning, -1);
    plan_attempt(s);
}

// What follows an accepted step for the components [begin, end) of a lane: record, polynomial, outputs, the new state.
// `k` are all stages, `weights` room for kMostStages numbers that the group shares.
template <class T, class Group>
FASTODE_HOST_DEVICE void commit(const Group& group, const StepState<T>& a, int64_t lane, const T* const* k, const T* y1,
                                T* weights, int64_t begin, int64_t end) {
    const SampleState<T> s{a, a.sample[lane]};
    if (s.whole(kTaken) == 0) return;  // the same for the whole group
    const int64_t at = lane * a.width;
    const int stages = a.s, degree = a.degree;
    const auto size = static_cast<T>(s.real(kSize));
    const auto weighted = [&](int64_t i) {
        T sum = T(0);
        for (int j = 0; j < stages; ++j) {
            if (weights[j] != T(0)) sum = multiply_add(weights[j], k[j][at + i], sum);
        }
        return sum;
    };
    const int64_t row = s.whole(kStepRow), state_row = s.whole(kStateRow);
    if (state_row >= 0) {
        T* keep = a.state_chunks[state_row / a.states_per_chunk] + state_row % a.states_per_chunk * a.width;
        group.each([&](int rank) {
            for (int64_t i = begin + rank; i < end; i += Group::kSize) keep[i] = a.y[at + i];
        });
    }
    if (a.coef_chunks != nullptr && row >= 0) {
        T* coefs = a.coef_chunks[row / a.steps_per_chunk] + row % a.steps_per_chunk * (degree + 1) * a.width;
        group.each([&](int rank) {
            for (int64_t i = begin + rank; i < end; i += Group::kSize) coefs[i] = a.y[at + i];
        });
        for (int m = 0; m < degree; ++m) {
            group.sync();
            group.each([&](int rank) {
                for (int j = rank; j < stages; j += Group::kSize) weights[j] = static_cast<T>(a.q[j * degree + m]);
            });
            group.sync();
            group.each([&](int rank) {
                T* out = coefs + (m + 1) * a.width;
                for (int64_t i = begin + rank; i < end; i += Group::kSize) out[i] = size * weighted(i);
            });
        }
    }
    for (int64_t e = s.whole(kFirstOutput); e < s.whole(kNextOutput); ++e) {
        const double t = s.time(e);
        T* out = a.ys + (e * a.batch + s.b) * a.width;
        if (t == s.real(kTo)) {
            group.each([&](int rank) {
                for (int64_t i = begin + rank; i < end; i += Group::kSize) out[i] = y1[at + i];
            });
            continue;
        }
        const double theta = (t - s.real(kFrom)) / s.real(kSize);
        group.sync();
        group.each([&](int rank) {
            if (rank >= stages) return;
            double phi[kMostStages];
            bernstein_basis(theta, degree, phi);
            for (int j = rank; j < stages; j += Group::kSize) {
                double weight = 0.0;
                for (int m = 0; m < degree; ++m) weight += a.q[j * degree + m] * phi[m];
                weights[j] = static_cast<T>(weight);
            }
        });
        group.sync();
        group.each([&](int rank) {
            for (int64_t i = begin + rank; i < end; i += Group::kSize) {
                out[i] = multiply_add(size, weighted(i), a.y[at + i]);
            }
        });
    }
    group.each([&](int rank) {
        for (int64_t i = begin + rank; i < end; i += Group::kSize) {
            a.y[at + i] = y1[at + i];
            a.k[at + i] = k[stages - 1][at + i];
        }
    });
}

// --- reading the record -------------------------------------------------------------------------------------------

template <class T>
FASTODE_HOST_DEVICE inline int64_t steps_of(const WalkState<T>& a, int64_t b) {
    return a.offsets[b + 1] - a.offsets[b];
}

// Component i of the lane's state at the start of step j, a multiple of the record's spacing, or of its last kept one.
template <class T>
FASTODE_HOST_DEVICE inline T recorded_state(const WalkState<T>& a, int64_t lane, int64_t j, int64_t i) {
    const int64_t b = a.sample[lane];
    const int64_t last = (steps_of(a, b) - 1) / a.every * a.every;
    const int64_t row = a.table[a.offsets[b] + (j < last ? j : last)].state_row;
    return a.state_chunks[row / a.states_per_chunk][row % a.states_per_chunk * a.width + i];
}

// Start and signed size of step j of a lane; a lane without that step stands still at its end.
template <class T>
FASTODE_HOST_DEVICE inline void recorded_step(const WalkState<T>& a, int64_t lane, int64_t j, double* t, double* h) {
    const int64_t b = a.sample[lane], n = steps_of(a, b);
    const bool standing = j >= n;
    const StepRow& row = a.table[a.offsets[b] + (standing ? n - 1 : j)];
    t[lane] = standing ? row.t_next : row.t;
    h[lane] = standing ? 0.0 : row.h;
}

template <class T>
FASTODE_HOST_DEVICE inline int64_t first_output_after(const WalkState<T>& a, int64_t b, double t, double direction) {
    int64_t low = 0, high = a.n_times;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (direction * (a.times[middle * a.batch + b] - t) > 0.0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Whether an output of the sample lies strictly inside a step.
template <class T>
FASTODE_HOST_DEVICE inline bool has_output_inside(const WalkState<T>& a, const StepRow& row) {
    const double direction = row.h > 0.0 ? 1.0 : -1.0;
    const int64_t e = first_output_after(a, row.sample, row.t, direction);
    return e < a.n_times && direction * (row.t_next - a.times[e * a.batch + row.sample]) > 0.0;
}

// Component i of a lane: the gradients of outputs at the end of step j are added to p (n, width); those inside it and
// of the dense output are written to g (degree + 1, n, width), unless that is null.
template <class T>
FASTODE_HOST_DEVICE inline void output_gradients(const WalkState<T>& a, int64_t lane, int64_t n, int64_t j, int64_t i,
                                                 T* p, T* g) {
    const int64_t b = a.sample[lane], plane = n * a.width, at = lane * a.width + i;
    const int degree = a.degree;
    const bool taken = j < steps_of(a, b);
    const int64_t position = a.offsets[b] + j;
    if (g != nullptr) {
        for (int m = 0; m <= degree; ++m) g[m * plane + at] = T(0);
    }
    if (!taken) return;
    const StepRow row = a.table[position];
    const double direction = row.h > 0.0 ? 1.0 : -1.0;
    for (int64_t e = first_output_after(a, b, row.t, direction); e < a.n_times; ++e) {
        const double t = a.times[e * a.batch + b];
        if (direction * (row.t_next - t) < 0.0) break;
        const T grad = a.grad_ys[(e * a.batch + b) * a.width + i];
        if (t == row.t_next) {
            p[at] += grad;
            continue;
        }
        if (g == nullptr) continue;
        double phi[kMostStages];
        bernstein_basis((t - row.t) / row.h, degree, phi);
        g[at] += grad;
        for (int m = 1; m <= degree; ++m) g[m * plane + at] += static_cast<T>(phi[m - 1]) * grad;
    }
    if (a.grad_coefs == nullptr || g == nullptr) return;
    for (int m = 0; m <= degree; ++m) {
        g[m * plane + at] += a.grad_coefs[(position * (degree + 1) + m) * a.width + i];
    }
}

// out = base + scale sum, component `at` of row r.
template <class T>
FASTODE_HOST_DEVICE inline void combine_element(const Terms<T>& terms, const T* base, const double* scale, T* out,
                                                int64_t at, int64_t r) {
    const T sum = sum_terms(terms, at);
    const T factor = scale == nullptr ? T(1) : static_cast<T>(scale[r]);
    out[at] = base == nullptr ? factor * sum : multiply_add(factor, sum, base[at]);
}

}  // namespace fastode
