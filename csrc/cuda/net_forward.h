// The whole forward solve of one sample by a group of threads: for host and device.
#pragma once

#include "core/interpolant.h"
#include "cuda/clock.h"
#include "cuda/net_field.h"
#include "cuda/net_pages.h"
#include "cuda/net_stream.h"

namespace fastode {

template <class Shape, class T, class Group>
struct NetForward {
    using Field = NetFieldOf<Shape, T, Group, false>;
    static constexpr int kDim = Shape::kDim, kLayers = Shape::kLayers;
    template <int kCount>
    using Local = typename Group::template Local<T, kCount>;

    const Group& group;
    const NetSolve<T>& a;
    Field field;
    T *inputs, *hidden, *k, *weights;  // (2, kDim), (2, kDim), (s, kDim), (kNetStages,)
    int64_t* broadcast;
    Local<1> y, y1, value, rtol, atol;
    int turn = 0;       // which of the two input vectors is free
    int64_t owned = 0;  // pages of the sample

    FASTODE_HOST_DEVICE NetForward(const Group& g, const NetSolve<T>& solve, T* shared, int64_t* slot)
        : group(g), a(solve), field{g, shared}, broadcast(slot) {
        inputs = shared + Field::kReserved;
        hidden = inputs + 2 * kDim;
        k = hidden + 2 * kDim;
        weights = k + a.method.s * kDim;
    }

    FASTODE_HOST_DEVICE double time(int64_t e, int64_t b) const {
        return a.times[e * a.time_row_stride + b * a.time_sample_stride];
    }
    FASTODE_HOST_DEVICE bool real_row(int rank) const { return Field::row_of(rank) < a.width; }
    // One thread of each row writes to memory.
    FASTODE_HOST_DEVICE bool writes(int rank) const { return real_row(rank) && Field::leads(rank); }
    FASTODE_HOST_DEVICE T& stage(int i, int rank) const { return k[i * kDim + Field::row_of(rank)]; }

    // Stage i from `value`, the state there in the thread's row.
    FASTODE_HOST_DEVICE void evaluate(int i) {
        T* x = inputs + turn * kDim;
        T* h = hidden + turn * kDim;
        turn ^= 1;
        group.each([&](int rank) {
            if (Field::leads(rank)) x[Field::row_of(rank)] = value.at(rank, 0);
        });
        group.sync();
        Local<1> z;
        field.template product<0>(x, z);
        if constexpr (kLayers == 2) {
            group.each([&](int rank) {
                const int row = Field::row_of(rank);
                const T out =
                    activate<false, T>(a.layer[0].activation, z.at(rank, 0) + field.bias.at(rank, 0), nullptr);
                if (Field::leads(rank)) h[row] = row < a.layer[0].rows ? out : T(0);
            });
            group.sync();
            field.template product<kLayers - 1>(h, z);
        }
        group.each([&](int rank) {
            const T in = z.at(rank, 0) + field.bias.at(rank, kLayers - 1);
            const T out = activate<false, T>(a.layer[kLayers - 1].activation, in, nullptr);
            if (Field::leads(rank)) stage(i, rank) = real_row(rank) ? out : T(0);
        });
        field.sync_row();
    }

    // value = y + step sum_j coef[j] k_j, j < n.
    FASTODE_HOST_DEVICE void combine(const T* coef, int n, double step, Local<1>& out) {
        const auto factor = static_cast<T>(step);
        group.each([&](int rank) {
            T sum = T(0);
            for (int j = 0; j < n; ++j) {
                if (coef[j] != T(0)) sum = multiply_add(coef[j], stage(j, rank), sum);
            }
            out.at(rank, 0) = multiply_add(factor, sum, y.at(rank, 0));
        });
    }

    // Root mean square of numerator(rank) against the tolerance at |y| and |other|; NaN if `other` or stage i is not
    // finite.
    template <class F>
    FASTODE_HOST_DEVICE double norm(F&& numerator, Local<1>& other, int i) {
        const double sum = group.sum([&](int rank) {
            if (!writes(rank)) return 0.0;
            const T old_size = fabs(y.at(rank, 0)), new_y = other.at(rank, 0), new_size = fabs(new_y);
            const T size = new_size > old_size ? new_size : old_size;
            const T raw = multiply_add(rtol.at(rank, 0), size, atol.at(rank, 0));
            const T tiny = smallest_normal<T>();
            const auto quotient = static_cast<double>(numerator(rank) / (raw > tiny ? raw : tiny));
            const T last = stage(i, rank);
            return quotient * quotient + static_cast<double>((new_y - new_y) + (last - last));
        });
        return sqrt(sum / static_cast<double>(a.width));
    }

    FASTODE_HOST_DEVICE void choose_first_step(Clock& clock) {
        const double d0 = norm([&](int rank) { return y.at(rank, 0); }, y, 0);
        const double d1 = norm([&](int rank) { return stage(0, rank); }, y, 0);
        const double h0 = probe_step(d0, d1, fabs(clock.end - clock.t));
        const T one = T(1);
        combine(&one, 1, clock.direction * h0, value);
        evaluate(1);
        const double d2 = norm([&](int rank) { return stage(1, rank) - stage(0, rank); }, y, 0);
        // A NaN or an infinity in the probing evaluation must come through as one.
        clock.h = bounded_step(a.control, first_step(h0, d1, d2 / h0, a.control.exponent), clock.t);
        ++clock.evals;
    }

    // Outputs up to the end of the accepted step.
    FASTODE_HOST_DEVICE void write_outputs(const Clock& clock, int64_t b, int64_t& output) {
        for (; output < a.n_times; ++output) {
            const double t = time(output, b);
            if (clock.direction * (clock.target - t) < 0.0) break;
            T* out = a.ys + (output * a.batch + b) * a.width;
            if (t == clock.target) {
                group.each([&](int rank) {
                    if (writes(rank)) out[Field::row_of(rank)] = y1.at(rank, 0);
                });
                continue;
            }
            const double theta = (t - clock.t) / clock.step;
            group.sync();
            group.each([&](int rank) {
                for (int j = rank; j < a.method.s; j += Group::kSize) {
                    double phi[kNetDegree];
                    bernstein_basis(theta, a.method.degree, phi);
                    double weight = 0.0;
                    for (int m = 0; m < a.method.degree; ++m) weight += a.method.q[j][m] * phi[m];
                    weights[j] = static_cast<T>(weight);
                }
            });
            group.sync();
            combine(weights, a.method.s, clock.step, value);
            group.each([&](int rank) {
                if (writes(rank)) out[Field::row_of(rank)] = value.at(rank, 0);
            });
        }
    }

    // A page for the sample's next step, if it has none; false if none is left.
    FASTODE_HOST_DEVICE bool make_room(const Clock& clock, int64_t b) {
        const NetPages<T>& pages = a.pages;
        if (clock.accepted < owned * pages.per_page * pages.every) return true;
        group.sync();
        group.once([&] {
            const int64_t page = owned == 0 ? b : take_page(pages);
            if (page >= 0) {
                page_before(pages, page) = owned == 0 ? -1 : pages.last[b];
                pages.last[b] = page;
            }
            *broadcast = page;
        });
        group.sync();
        if (*broadcast < 0) return false;
        ++owned;
        return true;
    }

    FASTODE_HOST_DEVICE void write_record(const Clock& clock, int64_t b) {
        const NetPlace<T> place = place_of(a.pages, a.pages.last[b], clock.accepted - 1, a.width);
        group.each([&](int rank) {
            if (rank == 0) {
                place.step[0] = clock.t;
                place.step[1] = clock.target;
                place.step[2] = clock.step;
            }
            if (place.state != nullptr && writes(rank)) place.state[Field::row_of(rank)] = y.at(rank, 0);
        });
    }

    FASTODE_HOST_DEVICE double& real(NetReal row, int64_t b) const { return a.real[row * a.batch + b]; }
    FASTODE_HOST_DEVICE int64_t& whole(NetWhole row, int64_t b) const { return a.whole[row * a.batch + b]; }

    FASTODE_HOST_DEVICE void begin(Clock& clock, int64_t b, int64_t& output) {
        evaluate(0);
        const double poison = group.sum([&](int rank) {
            if (!writes(rank)) return 0.0;
            const T now = y.at(rank, 0), slope = stage(0, rank);
            return static_cast<double>((now - now) + (slope - slope));
        });
        clock.start(time(0, b), time(a.n_times - 1, b), poison == 0.0);
        group.each([&](int rank) {
            if (a.k1 != nullptr && writes(rank)) a.k1[b * a.width + Field::row_of(rank)] = stage(0, rank);
        });
        for (output = 0; output < a.n_times && time(output, b) == clock.t; ++output) {
            group.each([&](int rank) {
                if (writes(rank)) a.ys[(output * a.batch + b) * a.width + Field::row_of(rank)] = y.at(rank, 0);
            });
        }
        if (a.step_size != nullptr) {
            clock.h = clock.fixed = a.step_size[b];
        } else if (a.first_step > 0.0) {
            clock.h = bounded_step(a.control, a.first_step, clock.t);
        } else {
            choose_first_step(clock);
        }
    }

    // Goes on where a sample ran out of pages. The field there is computed again: the same bits.
    FASTODE_HOST_DEVICE void resume(Clock& clock, int64_t b, int64_t& output) {
        evaluate(0);
        clock.start(time(0, b), time(a.n_times - 1, b), true);
        if (a.step_size != nullptr) clock.fixed = a.step_size[b];
        clock.t = real(kNetTime, b);
        clock.h = real(kNetSize, b);
        clock.previous = real(kNetPrevious, b);
        clock.before = real(kNetBefore, b);
        clock.accepted = whole(kNetAccepted, b);
        clock.rejected = whole(kNetRejected, b);
        clock.evals = whole(kNetEvals, b);
        output = whole(kNetOutput, b);
        const int64_t steps = a.recorded ? static_cast<int64_t>(a.pages.per_page) * a.pages.every : 1;
        owned = (clock.accepted + steps - 1) / steps;
    }

    FASTODE_HOST_DEVICE void run(int64_t b, bool resumed) {
        field.load(a.layer, b);
        const T* from = (resumed ? a.y : a.y0) + b * a.width;
        group.each([&](int rank) {
            const int row = Field::row_of(rank);
            const bool there = real_row(rank);
            y.at(rank, 0) = value.at(rank, 0) = there ? from[row] : T(0);
            rtol.at(rank, 0) = there ? a.rtol[row] : T(1);
            atol.at(rank, 0) = there ? a.atol[row] : T(1);
        });
        Clock clock;
        int64_t output = 0;
        owned = 0;
        if (resumed) {
            resume(clock, b, output);
        } else {
            begin(clock, b, output);
        }
        const int s = a.method.s;
        while (clock.status == Status::running) {
            if (a.recorded && !make_room(clock, b)) break;
            clock.plan(a.control, ends_at_output(a.control, clock.h) ? time(output, b) : 0.0);
            for (int i = 1; i < s; ++i) {
                combine(a.method.a + i * (i - 1) / 2, i, clock.step, value);
                evaluate(i);
            }
            group.each([&](int rank) { y1.at(rank, 0) = value.at(rank, 0); });
            const auto factor = static_cast<T>(clock.step);
            const double ratio = norm(
                [&](int rank) {
                    T sum = T(0);
                    for (int j = 0; a.method.adaptive && j < s; ++j) {
                        if (a.method.e[j] != T(0)) sum = multiply_add(a.method.e[j], stage(j, rank), sum);
                    }
                    return factor * sum;
                },
                y1, s - 1);
            const bool accept = clock.template judge<T>(a.control, ratio, a.method.adaptive, s);
            if (accept) {
                if (a.recorded) write_record(clock, b);
                write_outputs(clock, b, output);
                field.sync_row();
                group.each([&](int rank) {
                    y.at(rank, 0) = y1.at(rank, 0);
                    if (Field::leads(rank)) stage(0, rank) = stage(s - 1, rank);
                });
                field.sync_row();
            }
            clock.advance(accept, a.max_steps);
        }
        finish(clock, b, output);
    }

    FASTODE_HOST_DEVICE void finish(const Clock& clock, int64_t b, int64_t output) {
        const bool going_on = clock.status == Status::running;
        const T nothing = static_cast<T>(NAN);
        for (int64_t e = output; e < a.n_times && !going_on; ++e) {
            group.each([&](int rank) {
                if (writes(rank)) a.ys[(e * a.batch + b) * a.width + Field::row_of(rank)] = nothing;
            });
        }
        group.each([&](int rank) {
            if (going_on && writes(rank)) a.y[b * a.width + Field::row_of(rank)] = y.at(rank, 0);
        });
        group.once([&] {
            real(kNetTime, b) = clock.t;
            real(kNetSize, b) = clock.h;
            real(kNetPrevious, b) = clock.previous;
            real(kNetBefore, b) = clock.before;
            whole(kNetStatus, b) = static_cast<int64_t>(clock.status);
            whole(kNetAccepted, b) = clock.accepted;
            whole(kNetRejected, b) = clock.rejected;
            whole(kNetEvals, b) = clock.evals;
            whole(kNetOutput, b) = output;
        });
    }
};

}  // namespace fastode
