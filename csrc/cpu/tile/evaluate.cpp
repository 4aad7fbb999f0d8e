#include <algorithm>
#include <cmath>

#include "core/interrupt.h"
#include "core/thread_pool.h"
#include "cpu/tile/backward.h"
#include "cpu/tile/forward.h"
#include "cpu/tile/stage_frames.h"

namespace fastode {

template <class T>
void tile_evaluate(const TileProgram& program, int64_t batch, const double* t, const T* y, const TileLeaves<T>& leaves,
                   T* out, int threads, const int64_t* owner) {
    if (batch == 0) return;
    Workspace& memory = Workspace::of_this_thread();
    const Workspace::Scope scope(memory);
    const int64_t lanes = program.lanes, dim = program.dim;
    T* shared = memory.take<T>(program.n_shared);
    pack_shared(program, leaves, shared);
    const double ns = estimated_ns(program.forward, lanes) + static_cast<double>(program.n_param + 2 * dim);
    const int64_t tiles = (batch + lanes - 1) / lanes;
    const int64_t per_chunk = std::max<int64_t>(1, (1024 + lanes - 1) / lanes);
    parallel_chunks(
        (tiles + per_chunk - 1) / per_chunk, threads_for(ns * static_cast<double>(batch), threads),
        [&](int64_t chunk, int) {
            Workspace& own = Workspace::of_this_thread();
            const Workspace::Scope inner(own);
            TileFrame<T> f;
            std::fill_n(f.base, kTileBases, nullptr);
            f.base[base_in] = own.take<T>(dim * lanes);
            f.base[base_out] = own.take<T>(dim * lanes);
            f.base[base_time] = own.take<T>(lanes);
            f.base[base_tmp] = own.take<T>(program.n_tmp * lanes);
            f.base[base_param] = own.take<T>(program.n_param * lanes);
            f.base[base_shared] = shared;
            f.maps = program.maps.data();
            f.lanes = lanes;
            Looks looks(ns * static_cast<double>(lanes));
            const int64_t end = std::min(batch, (chunk + 1) * per_chunk * lanes);
            for (int64_t first = chunk * per_chunk * lanes; first < end; first += lanes) {
                looks.tick();
                const int64_t n = std::min(lanes, end - first);
                f.active = whole_lanes(n, lanes);
                int64_t samples[kMostLanes];
                for (int64_t lane = 0; lane < n; ++lane) {
                    samples[lane] = first + lane;
                    f.base[base_time][lane] = static_cast<T>(t[first + lane]);
                }
                put_lanes(f.base[base_in], lanes, n, dim, [&](int64_t lane) { return y + samples[lane] * dim; });
                pack_params(program, leaves, owner == nullptr ? samples : owner + first, n, f.base[base_param], lanes);
                run_code(program.forward, f);
                get_lanes(f.base[base_out], lanes, n, dim, [&](int64_t lane) { return out + samples[lane] * dim; });
            }
        });
}

template <class T>
void tile_vjp(const TileProgram& program, int64_t batch, const double* t, const T* y, const T* g,
              const TileLeaves<T>& leaves, const TileGradients<T>& gradients, int threads) {
    Workspace& memory = Workspace::of_this_thread();
    const Workspace::Scope scope(memory);
    const int64_t lanes = program.backward_lanes, dim = program.dim;
    T* shared = memory.take<T>(program.n_shared);
    pack_shared(program, leaves, shared);
    const int64_t n_groups = gradient_groups(program, batch);
    const int64_t size = n_groups == 0 ? 0 : (batch + n_groups - 1) / n_groups;
    const double ns = estimated_ns(program.forward_keep, lanes) + estimated_ns(program.reverse, lanes) +
                      estimated_ns(program.accumulate, lanes) + static_cast<double>(program.n_param + 4 * dim);
    over_groups<T>(
        program, n_groups, threads_for(ns * static_cast<double>(batch), threads), gradients.shared,
        [&](int64_t group, T* gshared, Workspace& own) {
            StageFrames<T> frames(program, 1, 1, 0, shared, gshared, own);
            TileFrame<T>& f = frames[0];
            Looks looks(ns * static_cast<double>(lanes));
            const int64_t end = std::min(batch, (group + 1) * size);
            for (int64_t first = group * size; first < end; first += lanes) {
                looks.tick();
                const int64_t n = std::min(lanes, end - first), active = whole_lanes(n, lanes);
                frames.set_active(active);
                frames.clear_gradients();
                int64_t samples[kMostLanes];
                for (int64_t lane = 0; lane < active; ++lane) {
                    // Lanes without a sample repeat the first one with a cotangent of zero.
                    samples[lane] = lane < n ? first + lane : first;
                    f.base[base_time][lane] = static_cast<T>(t[samples[lane]]);
                }
                put_lanes(f.base[base_in], lanes, active, dim, [&](int64_t lane) { return y + samples[lane] * dim; });
                std::fill_n(f.base[base_gout], dim * lanes, T(0));
                put_lanes(f.base[base_gout], lanes, n, dim, [&](int64_t lane) { return g + samples[lane] * dim; });
                frames.load_params(leaves, samples, active);
                run_code(program.forward_keep, f);
                run_code(program.reverse, f);
                const TileFrame<T>* used = &f;
                run_accumulate(program.accumulate, &used, 1);
                if (gradients.y0 != nullptr) {
                    get_lanes(f.base[base_gin], lanes, n, dim,
                              [&](int64_t lane) { return gradients.y0 + samples[lane] * dim; });
                }
                frames.write_gradients(gradients, samples, n);
            }
        });
}

#define FASTODE_FOR(T)                                                                                               \
    template void tile_evaluate(const TileProgram&, int64_t, const double*, const T*, const TileLeaves<T>&, T*, int, \
                                const int64_t*);                                                                     \
    template void tile_vjp(const TileProgram&, int64_t, const double*, const T*, const T*, const TileLeaves<T>&,     \
                           const TileGradients<T>&, int);
FASTODE_FOR(float)
FASTODE_FOR(double)
#undef FASTODE_FOR

}  // namespace fastode
