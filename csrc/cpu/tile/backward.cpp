#include "cpu/tile/backward.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/interpolant.h"
#include "core/interrupt.h"
#include "cpu/tile/forward.h"
#include "cpu/tile/stage_frames.h"

namespace fastode {
namespace {

// Of a sample's stage.
double adjoint_ns(const TileProgram& program) {
    const int64_t lanes = program.backward_lanes;
    return estimated_ns(program.forward_keep, lanes) + estimated_ns(program.reverse, lanes) +
           estimated_ns(program.accumulate, lanes) + 4.0 * static_cast<double>(program.dim);
}

// The samples of a group, tile by tile, longest first: all lanes are at the same step number, and the lanes that took
// a step of this number are the first few. A lane whose sample did not take it stands still with h = 0 and no gradient.
template <class T>
class BackwardTile {
public:
    BackwardTile(const TileProgram& program, const TileMethod& method, const TileAdjoint<T>& adjoint, T* shared,
                 T* gshared, Workspace& memory)
        : program_(program),
          method_(method),
          adjoint_(adjoint),
          stage_(stage_kernels(shared)),
          frames_(program, method.s, kMostSlots, 2 + adjoint.every + method.degree, shared, gshared, memory),
          dim_(program.dim),
          lanes_(program.backward_lanes),
          timed_(reads_time(program.forward_keep) || reads_time(program.reverse) || reads_time(program.accumulate)),
          looks_(adjoint_ns(program) * static_cast<double>(method.s * frames_.width())) {
        const int64_t padded = (frames_.width() + 15) / 16 * 16;
        p_ = frames_.take(dim_);
        states_ = memory.take<T*>(adjoint.every);
        for (int64_t i = 0; i < adjoint.every; ++i) states_[i] = frames_.take(dim_);
        for (int m = 0; m <= method.degree; ++m) inner_[m] = frames_.take(dim_);
        step_of_ = memory.take<T>(padded);
        t_ = memory.take<double>(padded);
        h_ = memory.take<double>(padded);
        sample_ = memory.take<int64_t>(padded);
        count_ = memory.take<int64_t>(padded);
        output_ = memory.take<int64_t>(padded);
        // Replaying runs the forward routine, whose intermediates may need more room than those of forward_keep.
        replay_tmp_ = adjoint.every > 1 ? memory.take<T>(program.n_tmp * lanes_) : nullptr;
    }

    // Samples at once.
    int64_t width() const { return frames_.width(); }

    // Samples in the order of falling numbers of steps, at least one each, no more than `width`; of `next`, which are
    // those of the next call, the constants are fetched meanwhile.
    void run(const int64_t* samples, int64_t n, const int64_t* next, int64_t n_next) {
        const int64_t every = adjoint_.every;
        next_ = next;
        n_next_ = n_next;
        n_samples_ = n;
        prefetched_ = program_.n_param < kLargeParam ? kPrefetchParts : 0;
        load(samples, n);
        for (int64_t start = (count_[0] - 1) / every * every; start >= 0; start -= every) {
            const int64_t length = std::min(every, count_[0] - start);
            load_states(start);
            for (int64_t i = 1; i < length; ++i) replay(start + i - 1, i - 1);
            for (int64_t i = length - 1; i >= 0; --i) step(start + i, states_[i]);
        }
        if (adjoint_.gradients.y0 != nullptr) {
            frames_.get(p_, n, dim_, [&](int64_t lane) { return adjoint_.gradients.y0 + sample_[lane] * dim_; });
        }
        frames_.write_gradients(adjoint_.gradients, sample_, n);
    }

private:
    static constexpr int kPrefetchParts = 12;
    static constexpr int64_t kLargeParam = 64;  // fewer constants of a sample are not worth it

    // A part of what will be read next and of what will be written at the end.
    void prefetch() {
        if (prefetched_ >= kPrefetchParts) return;
        for (int64_t i = 0; i < n_next_; ++i) {
            prefetch_param(program_, adjoint_.leaves, next_[i], prefetched_, kPrefetchParts);
        }
        for (size_t leaf = 0; leaf < program_.param_sizes.size(); ++leaf) {
            T* const rows = adjoint_.gradients.params[leaf];
            const int64_t size = program_.param_sizes[leaf];
            for (int64_t i = 0; rows != nullptr && i < n_samples_; ++i) {
                prefetch_row<true>(rows + sample_[i] * size, size, prefetched_, kPrefetchParts);
            }
        }
        ++prefetched_;
    }

    void load(const int64_t* samples, int64_t n) {
        const int64_t active = frames_.set_active(n);
        for (int64_t lane = 0; lane < active; ++lane) {
            const int64_t sample = lane < n ? samples[lane] : samples[0];
            sample_[lane] = sample;
            count_[lane] = lane < n ? adjoint_.offsets[sample + 1] - adjoint_.offsets[sample] : 0;
            output_[lane] = adjoint_.n_times - 1;
        }
        frames_.load_params(adjoint_.leaves, sample_, active);
        frames_.clear(p_, dim_);
        frames_.clear_gradients();
        loaded_ = active;
    }

    // Lanes that took step j, rounded up; sets the frames' and terms' number.
    int64_t set_active(int64_t j) {
        int64_t n = 0;
        while (n < loaded_ && count_[n] > j) ++n;
        const int64_t active = frames_.set_active(n);
        terms_.width = dim_;
        terms_.lanes = lanes_;
        terms_.active = active;
        terms_.slots = frames_.slots();
        return active;
    }

    // Where a lane is that did not take step j: at the last of its own states that was kept.
    int64_t standing(int64_t lane) const {
        const int64_t sample = sample_[lane];
        return (adjoint_.offsets[sample + 1] - adjoint_.offsets[sample] - 1) / adjoint_.every * adjoint_.every;
    }

    void load_states(int64_t start) {
        const int64_t active = set_active(start);
        frames_.put(states_[0], active, dim_, [&](int64_t lane) {
            const int64_t j = count_[lane] > start ? start : standing(lane);
            const int64_t row = adjoint_.state_offsets[sample_[lane]] + j / adjoint_.every;
            return adjoint_.states + row * dim_;
        });
    }

    void set_times(int64_t j, int64_t active) {
        for (int64_t lane = 0; lane < active; ++lane) {
            const bool moves = count_[lane] > j;
            const double* row = adjoint_.table + 3 * (adjoint_.offsets[sample_[lane]] + (moves ? j : standing(lane)));
            t_[lane] = row[0];
            h_[lane] = moves ? row[2] : 0.0;
            step_of_[lane] = static_cast<T>(h_[lane]);
        }
    }

    // The state after step j from the one before it, number `from` of the block, as the forward pass computed it.
    void replay(int64_t j, int64_t from) {
        looks_.tick();
        const int64_t active = set_active(j + 1);
        set_times(j, active);
        T *y = states_[from], *next = states_[from + 1];
        const int64_t n = frames_.slots().n;
        for (int i = 0; i < method_.s; ++i) {
            if (i > 0) stage_state(i, y, next);
            if (i + 1 == method_.s) break;  // the last stage's state is the new one
            stage_time(i, active);
            for (int64_t slot = 0; slot < n; ++slot) {
                TileFrame<T> f = frames_.at(i, slot);
                f.base[base_in] = (i == 0 ? y : next) + slot * frames_.sample_step();
                f.base[base_tmp] = replay_tmp_;
                run_code(program_.forward, f);
            }
        }
    }

    void stage_state(int i, const T* y, T* out) {
        terms_.n = 0;
        for (int m = 0; m < i; ++m) add_term<T>(terms_, method_.a_at(i, m), frames_[m].base[base_out]);
        stage_.combine(terms_, out, y, step_of_);
    }
    void stage_time(int i, int64_t active) {
        if (!timed_) return;
        T* out = frames_[i].base[base_time];
        const double c = method_.c[static_cast<size_t>(i)];
        for (int64_t lane = 0; lane < active; ++lane) out[lane] = static_cast<T>(t_[lane] + c * h_[lane]);
    }

    // The adjoint of step j from state y: p before and after in place, gradients added up.
    void step(int64_t j, T* y) {
        looks_.tick();
        const int64_t active = set_active(j);
        const bool inside = take_outputs(j, active);
        set_times(j, active);
        const int s = method_.s;
        const int used = inside || method_.b[static_cast<size_t>(s - 1)] != 0.0 ? s : s - 1;
        for (int i = 0; i < used; ++i) {
            if (i == 0) {
                const int64_t n = frames_.slots().n;
                for (int64_t k = 0; k < n; ++k) frames_.at(0, k).base[base_in] = y + k * frames_.sample_step();
            } else {
                stage_state(i, y, frames_[i].base[base_in]);
            }
            stage_time(i, active);
            prefetch();
            frames_.run(program_.forward_keep, i);
        }
        int pulled[kMaxStages];
        int n_pulled = 0;
        for (int i = used - 1; i >= 0; --i) {
            terms_.n = 0;
            add_term<T>(terms_, method_.b[static_cast<size_t>(i)], p_);
            if (inside) {
                for (int m = 0; m < method_.degree; ++m) add_term<T>(terms_, method_.q_at(i, m), inner_[m + 1]);
            }
            for (int m = 0; m < n_pulled; ++m) {
                add_term<T>(terms_, method_.a_at(pulled[m], i), frames_[pulled[m]].base[base_gin]);
            }
            if (terms_.n == 0) continue;
            stage_.combine(terms_, frames_[i].base[base_gout], nullptr, step_of_);
            frames_.run(program_.reverse, i);
            pulled[n_pulled++] = i;
        }
        frames_.accumulate(pulled, n_pulled);
        terms_.n = 0;
        for (int m = 0; m < n_pulled; ++m) add_term<T>(terms_, 1.0, frames_[pulled[m]].base[base_gin]);
        if (inside) add_term<T>(terms_, 1.0, inner_[0]);
        if (terms_.n > 0) stage_.combine(terms_, p_, p_, nullptr);
    }

    // Adds the gradients of outputs at the end of step j to p and collects those inside it; returns whether there are
    // any of the latter.
    bool take_outputs(int64_t j, int64_t active) {
        bool inside = false;
        for (int64_t lane = 0; lane < active; ++lane) {
            if (count_[lane] <= j) continue;
            const int64_t sample = sample_[lane];
            const double* row = adjoint_.table + 3 * (adjoint_.offsets[sample] + j);
            const double t = row[0], t_next = row[1], h = row[2], direction = h > 0.0 ? 1.0 : -1.0;
            const int64_t last = output_[lane];
            int64_t first = last + 1;
            while (first > 0 && direction * (adjoint_.time(first - 1, sample) - t) > 0.0) --first;
            output_[lane] = first - 1;
            for (int64_t e = first; e <= last; ++e) {
                const double at = adjoint_.time(e, sample);
                const T* grad = adjoint_.grad_ys + (e * adjoint_.batch + sample) * dim_;
                if (at == t_next) {
                    add(p_, lane, T(1), grad);
                    continue;
                }
                for (int m = 0; !inside && m <= method_.degree; ++m) frames_.clear(inner_[m], dim_);
                inside = true;
                double phi[kMaxStages];
                bernstein_basis((at - t) / h, method_.degree, phi);
                for (int m = 0; m <= method_.degree; ++m) {
                    add(inner_[m], lane, m == 0 ? T(1) : static_cast<T>(phi[m - 1]), grad);
                }
            }
        }
        return inside;
    }

    // Adds factor * row to a sample's numbers.
    void add(T* array, int64_t lane, T factor, const T* row) const {
        T* to = array + lane * frames_.sample_step();
        for (int64_t i = 0; i < dim_; ++i) to[i * lanes_] += factor * row[i];
    }

    const TileProgram& program_;
    const TileMethod& method_;
    const TileAdjoint<T>& adjoint_;
    const TileStage<T>& stage_;
    StageFrames<T> frames_;
    const int64_t dim_, lanes_;
    const bool timed_;
    Looks looks_;
    TileTerms<T> terms_;
    T *p_, *step_of_, *replay_tmp_;
    T** states_;  // at the starts of the steps of a block
    T* inner_[kMaxStages + 1];
    double *t_, *h_;
    int64_t *sample_, *count_, *output_;
    int64_t loaded_ = 0;
    const int64_t* next_ = nullptr;  // samples
    int64_t n_next_ = 0, n_samples_ = 0;
    int prefetched_ = 0;  // parts
};

}  // namespace

template <class T>
void tile_adjoint(const TileProgram& program, const TileMethod& method, const TileAdjoint<T>& adjoint) {
    Workspace& memory = Workspace::of_this_thread();
    const Workspace::Scope scope(memory);
    const int64_t batch = adjoint.batch, dim = program.dim;
    T* shared = memory.take<T>(program.n_shared);
    pack_shared(program, adjoint.leaves, shared);
    const auto moves = [&adjoint](int64_t b) {
        return (adjoint.solved == nullptr || adjoint.solved[b] != 0) && adjoint.offsets[b + 1] > adjoint.offsets[b];
    };
    const double total =
        batch == 0 ? 0.0 : adjoint_ns(program) * static_cast<double>(adjoint.offsets[batch] * (method.s - 1));
    const int64_t n_groups = gradient_groups(program, batch);
    const int64_t size = n_groups == 0 ? 0 : (batch + n_groups - 1) / n_groups;
    over_groups<T>(program, n_groups, threads_for(total, adjoint.threads), adjoint.gradients.shared,
                   [&](int64_t group, T* gshared, Workspace& own) {
                       const int64_t begin = group * size, end = std::min(batch, begin + size);
                       int64_t* order = own.take<int64_t>(size);
                       int64_t n = 0;
                       for (int64_t b = begin; b < end; ++b) {
                           if (moves(b)) {
                               order[n++] = b;
                               continue;
                           }
                           const TileGradients<T>& out = adjoint.gradients;
                           if (out.y0 != nullptr) std::fill_n(out.y0 + b * dim, dim, T(0));
                           for (size_t leaf = 0; leaf < out.params.size(); ++leaf) {
                               const int64_t elements = program.param_sizes[leaf];
                               if (out.params[leaf] != nullptr) {
                                   std::fill_n(out.params[leaf] + b * elements, elements, T(0));
                               }
                           }
                       }
                       const auto count = [&adjoint](int64_t b) { return adjoint.offsets[b + 1] - adjoint.offsets[b]; };
                       std::sort(order, order + n, [&count](int64_t x, int64_t y) {
                           return count(x) != count(y) ? count(x) > count(y) : x < y;
                       });
                       BackwardTile<T> tile(program, method, adjoint, shared, gshared, own);
                       for (int64_t first = 0; first < n; first += tile.width()) {
                           const int64_t here = std::min(tile.width(), n - first);
                           const int64_t more = std::min(tile.width(), n - first - here);
                           tile.run(order + first, here, order + first + here, more);
                       }
                   });
}

template void tile_adjoint(const TileProgram&, const TileMethod&, const TileAdjoint<float>&);
template void tile_adjoint(const TileProgram&, const TileMethod&, const TileAdjoint<double>&);

}  // namespace fastode
