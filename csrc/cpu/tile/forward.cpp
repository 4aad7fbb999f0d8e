#include "cpu/tile/forward.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "cpu/tile/forward_lanes.h"
#include "cpu/tile/forward_rows.h"
#include "cpu/tile/workspace.h"

namespace fastode {
namespace {

constexpr double kThreadNs = 60000;  // work that is worth waking another thread: on a virtual machine that takes 50 us
constexpr double kUsualEvals = 40;   // of a sample in a solve, for that estimate
constexpr int64_t kGroupsPerThread = 4;

}  // namespace

int threads_for(double ns, int threads) {
    return static_cast<int>(std::clamp<double>(ns / kThreadNs, 1.0, std::max(1, threads)));
}

template <class T>
void tile_solve(const TileProgram& program, const TileMethod& method, const StepControl& control,
                const TileSolve<T>& solve, TileRecord<T>* record) {
    if (solve.batch == 0) return;
    Workspace& memory = Workspace::of_this_thread();
    const Workspace::Scope scope(memory);
    T* shared = memory.take<T>(program.n_shared);
    pack_shared(program, solve.leaves, shared);
    const double ns =
        kUsualEvals * (estimated_ns(program.forward, program.lanes) + 2.0 * static_cast<double>(program.dim));
    const int threads = threads_for(ns * static_cast<double>(solve.batch), solve.threads);
    // Groups decide who works on what, never a result.
    const int64_t tiles = (solve.batch + program.lanes - 1) / program.lanes;
    const int64_t wanted = threads == 1 ? 1 : std::min<int64_t>(tiles, threads * kGroupsPerThread);
    const int64_t step = program.lanes == 1 ? 1 : 16;
    const int64_t size = ((solve.batch + wanted - 1) / wanted + step - 1) / step * step;
    parallel_chunks((solve.batch + size - 1) / size, threads, [&](int64_t group, int slot) {
        Workspace& own = Workspace::of_this_thread();
        const Workspace::Scope inner(own);
        TileArena<T>* arena = record == nullptr ? nullptr : &record->arena(slot);
        const int64_t begin = group * size, end = std::min(solve.batch, begin + size);
        if (program.lanes == 1) {
            RowsTile<T>(program, method, control, solve, shared, arena, own).run(begin, end, own);
        } else {
            LanesTile<T>(program, method, control, solve, shared, arena, own).run(begin, end, own);
        }
    });
    if (record != nullptr) record->finish(solve.n_accepted);
}

template void tile_solve(const TileProgram&, const TileMethod&, const StepControl&, const TileSolve<float>&,
                         TileRecord<float>*);
template void tile_solve(const TileProgram&, const TileMethod&, const StepControl&, const TileSolve<double>&,
                         TileRecord<double>*);

}  // namespace fastode
