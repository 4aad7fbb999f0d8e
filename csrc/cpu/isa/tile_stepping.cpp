#include "cpu/isa/vec_exp.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

using V = F64;
constexpr int kWidth = Simd<double>::W;

FASTODE_INLINE V number(double x) { return splat<double>(x); }
FASTODE_INLINE V pick(I64 mask, V yes, V no) { return select<double>(mask, yes, no); }

FASTODE_INLINE void store_as(double* to, V x) { store<double>(to, x); }
FASTODE_INLINE void store_as(float* to, V x) {
#if defined(__AVX512F__)
    _mm256_storeu_ps(to, _mm512_maskz_cvtpd_ps(0xff, x));
#elif defined(__AVX2__)
    _mm_storeu_ps(to, _mm256_cvtpd_ps(x));
#else
    for (int k = 0; k < kWidth; ++k) to[k] = static_cast<float>(x[k]);
#endif
}

// The arrays hold whole groups of 16 lanes, so a row's single lane is handled as a vector like any other.
template <class T>
void begin(const TileControl& c, const TileLanes& l, T* step_of, int64_t active) {
    const V infinity = number(__builtin_inf());
    for (int64_t i = 0; i < active; i += kWidth) {
        const V t = load<double>(l.t + i), h = load<double>(l.h + i), direction = load<double>(l.direction + i);
        const V next_output = load<double>(l.next_output + i);
        const V target = c.to_outputs ? next_output : pick(h == infinity, next_output, load<double>(l.end + i));
        const I64 cut = h * (1.0 + c.last_stretch) >= absolute<double>(target - t);
        const I64 alive = load<double>(l.alive + i) != 0.0;
        const V t_next = pick(alive, pick(cut, target, t + direction * h), t);
        const V step = t_next - t;
        store<double>(l.step + i, step);
        store<double>(l.t_next + i, t_next);
        store<double>(l.cut + i, pick(cut, number(1.0), V{}));
        store_as(step_of + i, step);
    }
}

template <class T>
void times(const TileLanes& l, double c, T* time, int64_t active) {
    for (int64_t i = 0; i < active; i += kWidth) {
        store_as(time + i, load<double>(l.t + i) + load<double>(l.step + i) * c);
    }
}

FASTODE_INLINE V floored_log(V ratio, double floor) { return log_v<double>(greater<double>(number(floor), ratio)); }

// Ratio of the next step size to this one, as step_factor in core/step_control.h.
FASTODE_INLINE V factor_of(const TileControl& c, V ratio, V previous, V before, I64 accepted) {
    const V zero{};
    V power = pick(accepted, number(c.b1), number(c.exponent)) * floored_log(ratio, c.ratio_floor);
    if (c.b2 != 0.0) power = power + pick(accepted, floored_log(previous, c.ratio_floor) * c.b2, zero);
    if (c.b3 != 0.0) power = power + pick(accepted, floored_log(before, c.ratio_floor) * c.b3, zero);
    const V raw = exp_v<double>(-power) * c.safety;
    const V high = pick(accepted, number(c.max_factor), number(1.0));
    const V clamped = greater<double>(number(c.min_factor), lesser<double>(high, raw));
    return pick(absolute<double>(ratio) < __builtin_inf(), clamped, number(c.min_factor));
}

template <class T>
int finish(const TileControl& c, const TileLanes& l, T* taken_of, int64_t active) {
    I64 any_rejection{}, any_acceptance{};
    const V zero{}, one = number(1.0);
    int n_events = 0;
    // By themselves, so that several of these long chains of operations are under way at once.
    alignas(64) double factors[256];
    for (int64_t i = 0; c.adaptive && i < active; i += kWidth) {
        const V ratio = load<double>(l.ratio + i);
        const V factor = factor_of(c, ratio, load<double>(l.previous + i), load<double>(l.before + i), ratio <= 1.0);
        store<double>(factors + i, factor);
    }
    for (int64_t i = 0; i < active; i += kWidth) {
        const V ratio = load<double>(l.ratio + i), step = load<double>(l.step + i), t = load<double>(l.t + i);
        const V t_next = load<double>(l.t_next + i), direction = load<double>(l.direction + i);
        const V h = load<double>(l.h + i), tried = lesser<double>(absolute<double>(step), h);
        const I64 cut = load<double>(l.cut + i) != 0.0, moves = step != 0.0;
        const I64 alive = load<double>(l.alive + i) != 0.0;
        const I64 finite = ratio == ratio;
        V outcome = number(-1.0);
        I64 accepted;
        if (c.adaptive) {
            accepted = moves & (ratio <= 1.0);
            const auto shortest = [&c](V from) {
                return greater<double>(number(c.least_step), absolute<double>(from) * c.ulps);
            };
            const V failure = pick(finite, number(2.0), number(3.0));  // Status: step_underflow, non_finite
            outcome = pick(alive & ~accepted & (tried <= shortest(t)), failure, outcome);
            const V previous = load<double>(l.previous + i), before = load<double>(l.before + i);
            const V grown = tried * load<double>(factors + i);
            const V size = pick(accepted & cut, greater<double>(h, grown), grown);
            const V longer = greater<double>(shortest(pick(accepted, t_next, t)), size);
            store<double>(l.h + i, pick(alive, lesser<double>(number(c.max_step), longer), h));
            store<double>(l.before + i, pick(accepted & ~cut, previous, before));
            store<double>(l.previous + i, pick(accepted & ~cut, ratio, previous));
        } else {
            accepted = moves & finite;
            outcome = pick(alive & ~accepted, pick(finite, number(2.0), number(3.0)), outcome);
            const V fixed = load<double>(l.fixed + i);
            store<double>(l.h + i, pick(cut, fixed, fixed + (h - absolute<double>(step))));
        }
        const V n_accepted = load<double>(l.accepted + i) + pick(accepted, one, zero);
        const V n_rejected = load<double>(l.rejected + i) + pick(alive & ~accepted, one, zero);
        store<double>(l.accepted + i, n_accepted);
        store<double>(l.rejected + i, n_rejected);
        outcome = pick(accepted & (t_next == load<double>(l.end + i)), zero, outcome);
        const I64 spent = (n_accepted + n_rejected) >= c.max_steps;
        outcome = pick(alive & (outcome == -1.0) & spent, one, outcome);
        const I64 output = accepted & (direction * (t_next - load<double>(l.next_output + i)) >= 0.0);
        const I64 event = output | (alive & (outcome != -1.0));
        store<double>(l.outcome + i, outcome);
        store<double>(l.taken + i, pick(accepted, one, zero));
        store<double>(l.t_old + i, t);
        store<double>(l.t + i, pick(accepted, t_next, t));
        store_as(taken_of + i, pick(accepted, one, zero));
        if (any<double>(event)) {
            for (int k = 0; k < kWidth; ++k) {
                if (event[k] != 0) l.events[n_events++] = static_cast<int32_t>(i + k);
            }
        }
        any_rejection |= alive & ~accepted;
        any_acceptance |= accepted;
    }
    return n_events * tile_step_event | (any<double>(any_rejection) ? tile_step_rejection : 0) |
           (any<double>(any_acceptance) ? tile_step_acceptance : 0);
}

}  // namespace

const TileSteppingKernels tile_stepping_kernels = {{begin<float>, times<float>, finish<float>},
                                                   {begin<double>, times<double>, finish<double>}};

}  // namespace fastode::FASTODE_ISA
