// What the kernels of a whole solve with per-sample weight matrices are given. Plain C++: no CUDA headers needed.
//
// The field of a sample is one or two layers, x -> act(alpha W x + b), without the time.
#pragma once

#include <cstdint>

#include "core/step_control.h"

namespace fastode {

constexpr int kNetStages = 16, kNetDegree = 8, kNetLayers = 2, kNetChunks = 24;
constexpr int kNetWidest = 512;

enum class Activation : int { identity, tanh, sigmoid, relu, sin, softplus, silu, elu, gelu };

// A method in first-same-as-last form, in the numbers that kernels compute with.
template <class T>
struct NetMethod {
    int s, degree;
    bool adaptive;
    T a[kNetStages * (kNetStages - 1) / 2];  // a_ij, j < i, row after row
    T b[kNetStages];
    T e[kNetStages];
    double q[kNetStages][kNetDegree];
};

// Where a layer's numbers are: those of sample b from `weight` + b weight_stride on, and the gradients, (B, *leaf) too.
template <class T>
struct NetLayer {
    int rows, cols;
    Activation activation;
    T alpha;
    const T* weight;
    int64_t weight_stride;
    int row_stride, col_stride;
    const T* bias;  // null: none
    int64_t bias_stride;
    int bias_step;
    T* grad_weight;  // null: not wanted
    T* grad_bias;
    int64_t grad_weight_stride, grad_bias_stride;
};

// Accepted steps, in pages of per_page states and per_page * every steps. The first page of sample b is page b; further
// ones are taken from a common counter and chained. Pages come in chunks: chunk c begins with page first[c].
constexpr int kNetUsualPage = 8;

template <class T>
struct NetPages {
    int n_chunks, per_page, every;
    int64_t first[kNetChunks + 1];
    double* table[kNetChunks];    // (pages, per_page * every, 3): t, t_next, h
    T* states[kNetChunks];        // (pages, per_page, D)
    int64_t* before[kNetChunks];  // (pages,), the sample's page before this one
    int64_t* taken;               // how many pages are taken
    int64_t* last;                // (B,), the sample's last page
};

enum NetReal : int { kNetTime, kNetSize, kNetPrevious, kNetBefore, kNetReals };
enum NetWhole : int { kNetStatus, kNetAccepted, kNetRejected, kNetEvals, kNetOutput, kNetWholes };

template <class T>
struct NetSolve {
    int64_t batch, n_times, max_steps;
    int width, layers;
    double first_step;    // 0 chooses
    const double* times;  // with strides: common to all samples, or (n_times, batch)
    int64_t time_row_stride, time_sample_stride;
    const double* step_size;  // (batch,), null when adaptive
    const T *y0, *rtol, *atol;
    T* ys;                 // (n_times, batch, width)
    T* k1;                 // (batch, width), null if not wanted
    T* y;                  // (batch, width), the state where a sample ran out of pages
    double* real;          // (kNetReals, batch)
    int64_t* whole;        // (kNetWholes, batch)
    const int64_t* queue;  // (n_queue,), samples that go on from there; null: all, from the start
    int64_t n_queue;
    bool recorded;
    StepControl control;
    NetMethod<T> method;
    NetLayer<T> layer[kNetLayers];
    NetPages<T> pages;
};

template <class T>
struct NetAdjoint {
    int64_t batch, n_times;
    int width, layers;
    const double* times;
    int64_t time_row_stride, time_sample_stride;
    const int64_t* whole;  // of the forward solve
    const T* grad_ys;      // (n_times, batch, width)
    T* grad_y0;            // (batch, width), from outputs after the start
    T* scratch;            // (groups, every, width), null where every = 1
    NetMethod<T> method;
    NetLayer<T> layer[kNetLayers];
    NetPages<T> pages;
};

}  // namespace fastode
