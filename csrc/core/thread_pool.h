// Threads for parallel calls: those of the OpenMP runtime that torch has brought, or a pool of workers that sleep
// between calls.
//
// Torch's workers spin for some milliseconds after each of its parallel operations. Workers of our own then get half a
// core each; torch's are there at once. Nothing is linked: the runtime is looked up in the process.
// A call of an Interrupt that is to stop ends early, with Interrupted.
// One caller at a time uses the workers; a call made from inside a parallel body, or while another Python thread has
// the workers, runs its chunks itself. After fork the child starts a pool of its own when it first needs one.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace fastode {

// How many threads, the caller included, take part in a parallel call. Throws std::invalid_argument unless in 1..1024.
void set_num_threads(int n);
int get_num_threads() noexcept;

// Whether to use OpenMP's threads where the process has a runtime; returns whether they will be used.
bool share_openmp(bool wanted);

// Ends and joins our own workers; a later parallel call starts them again.
void stop_threads();

// Calls body(context, chunk, slot) once for every chunk in [0, n_chunks), in any order, and returns when all have
// returned. At most `threads` threads take part, and never more than get_num_threads(). slot is in [0, threads) and no
// two bodies that run at the same time in this call share one, so it can index scratch memory. The first exception that
// a body throws is rethrown here; chunks not yet begun are then dropped.
using ChunkBody = void (*)(void* context, int64_t chunk, int slot);
void run_chunks(int64_t n_chunks, int threads, ChunkBody body, void* context);

// As run_chunks with a callable f(chunk, slot).
template <class F>
void parallel_chunks(int64_t n_chunks, int threads, F&& f) {
    using Body = std::remove_reference_t<F>;
    run_chunks(
        n_chunks, threads, [](void* context, int64_t chunk, int slot) { (*static_cast<Body*>(context))(chunk, slot); },
        const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

// Calls f(begin, end) over [0, n) in pieces of `grain` items. The pieces do not depend on the number of threads, so a
// sum taken piece by piece has the same bits for any number of them.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
    const int64_t n_chunks = (n + grain - 1) / grain;
    parallel_chunks(n_chunks, get_num_threads(), [&f, n, grain](int64_t chunk, int) {
        const int64_t begin = chunk * grain;
        f(begin, n - begin < grain ? n : begin + grain);
    });
}

}  // namespace fastode
