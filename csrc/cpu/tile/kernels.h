// The kernels of the tile machine, compiled per instruction set. Lanes: `active` is 1 if lanes is 1, else a multiple of
// 16. Every lane's bits depend on that lane alone. Memory may be read up to 64 bytes past a value, never written.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "cpu/tile/instruction.h"

namespace fastode {

// Pointwise and other instructions of the forward and reverse routines, one after another, each for all of the frames:
// several samples in rows, whose chains of operations the processor then has under way at once.
struct TileRunKernels {
    void (*f32)(const TileInstruction* code, int64_t n, const TileFrame<float>* const* frames, int64_t n_frames);
    void (*f64)(const TileInstruction* code, int64_t n, const TileFrame<double>* const* frames, int64_t n_frames);
};
FASTODE_ISA_TABLE(TileRunKernels, tile_run_kernels)

// One instruction of that kind; used by the run kernels of the same instruction set.
FASTODE_ISA_TABLE(TileRunKernels, tile_unary_kernels)
FASTODE_ISA_TABLE(TileRunKernels, tile_binary_kernels)
FASTODE_ISA_TABLE(TileRunKernels, tile_matmul_kernels)

// The accumulate routine over the frames of the stages that were pulled back.
struct TileAccumulateKernels {
    void (*f32)(const TileInstruction* code, int64_t n, const TileFrame<float>* const* frames, int64_t n_frames);
    void (*f64)(const TileInstruction* code, int64_t n, const TileFrame<double>* const* frames, int64_t n_frames);
};
FASTODE_ISA_TABLE(TileAccumulateKernels, tile_accumulate_kernels)

// Rows of contiguous numbers to columns of a tile, and back.
template <class T>
struct TilePacking {
    // out[c * stride + r] = rows[r][c]
    void (*spread)(T* out, int64_t stride, const T* const* rows, int64_t n_rows, int64_t n_columns);
    // rows[r][c] = in[c * stride + r]
    void (*collect)(T* const* rows, const T* in, int64_t stride, int64_t n_rows, int64_t n_columns);
};
struct TilePackKernels {
    TilePacking<float> f32;
    TilePacking<double> f64;
};
FASTODE_ISA_TABLE(TilePackKernels, tile_pack_kernels)

constexpr int kMaxStages = 32;
constexpr int kMaxTileTerms = 2 * kMaxStages + 8;

// The samples in rows that a kernel works on: their numbers, and how far the same arrays of two samples lie apart.
struct TileSlots {
    const int32_t* at;
    int64_t n, stride;
};

// sum_j coef[j] x_j over [width][lanes], or over [width] of each of the slots if lanes is 1; terms with a zero
// coefficient are left out before. Pointers are those of slot 0.
template <class T>
struct TileTerms {
    int n = 0;
    T coef[kMaxTileTerms];
    const T* x[kMaxTileTerms];
    int64_t width, lanes, active;
    TileSlots slots;
};

// Root mean square of scale * sum_j coef[j] x_j / (atol + rtol max(|y|, |y1|)); NaN if y1 or last is not finite.
template <class T>
struct TileNorm {
    const T *y, *y1, *last;
    const T *rtol, *atol;  // (width,)
    const T* scale;        // per lane or slot
};

template <class T>
struct TileStage {
    // out = base + scale * sum; base and scale, which is per lane or slot, may be null. In rows out is written to the
    // end of its last vector.
    void (*combine)(const TileTerms<T>& terms, T* out, const T* base, const T* scale);
    void (*norm)(const TileTerms<T>& terms, const TileNorm<T>& norm, double* out);  // per lane or slot
    // out = taken ? fresh : out, per lane
    void (*blend)(T* out, const T* fresh, const T* taken, int64_t width, int64_t lanes, int64_t active);
};
struct TileStageKernels {
    TileStage<float> f32;
    TileStage<double> f64;
};
FASTODE_ISA_TABLE(TileStageKernels, tile_stage_kernels)

// What step control knows of each lane. Arrays hold a whole number of 16 lanes.
struct TileLanes {
    double *t, *t_old, *h, *end, *direction, *previous, *before;
    double* fixed;                // size of fixed steps
    double *step, *t_next, *cut;  // the attempt: signed size, where it leads, and 1 if it was cut there
    double* next_output;          // time of the next output
    double *ratio, *accepted, *rejected;
    double* alive;    // 1 or 0
    double* outcome;  // Status as a number; -1 while running
    double* taken;    // 1 where this attempt was accepted
    int32_t* events;  // the lanes whose attempt reached an output or ended the solve
};

// The numbers of core/step_control.h that the kernels need.
struct TileControl {
    double exponent, b1, b2, b3, safety, min_factor, max_factor, ratio_floor, last_stretch, max_steps;
    double ulps, least_step, max_step;  // no adaptive step is shorter than ulps * |t| or the least one
    bool adaptive, to_outputs;
};

// What `finish` found; the number of events is counted from tile_step_event on.
enum TileStepFlags : int { tile_step_rejection = 1, tile_step_acceptance = 2, tile_step_event = 4 };

template <class T>
struct TileStepping {
    void (*begin)(const TileControl& control, const TileLanes& lanes, T* step, int64_t active);
    void (*times)(const TileLanes& lanes, double c, T* time, int64_t active);
    int (*finish)(const TileControl& control, const TileLanes& lanes, T* taken, int64_t active);  // TileStepFlags
};
struct TileSteppingKernels {
    TileStepping<float> f32;
    TileStepping<double> f64;
};
FASTODE_ISA_TABLE(TileSteppingKernels, tile_stepping_kernels)

}  // namespace fastode
