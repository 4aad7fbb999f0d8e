// Threads that work on one sample together, written once for host and device.
//
// Code for a group alternates between each(f), in which every thread runs f(its number), and points at which all wait
// for each other. On the device f is inlined and what a thread keeps between two calls of each, a Local, is in
// registers. On the host each is a loop over the threads, and a Local has a row for each of them: the same text can be
// run, and tested, without a GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/step_control.h"

namespace fastode {

#ifdef __CUDA_ARCH__
#define FASTODE_UNROLL _Pragma("unroll")
#else
#define FASTODE_UNROLL
#endif

constexpr int kWarp = 32;

FASTODE_HOST_DEVICE inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
FASTODE_HOST_DEVICE inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// All threads of a group one after another.
template <int kThreads>
struct HostGroup {
    static constexpr int kSize = kThreads;

    template <class T, int kCount>
    struct Local {
        T value[kThreads][kCount];
        FASTODE_HOST_DEVICE T& at(int rank, int i) { return value[rank][i]; }
    };

    template <class F>
    FASTODE_HOST_DEVICE void each(F&& f) const {
        for (int rank = 0; rank < kThreads; ++rank) f(rank);
    }

    FASTODE_HOST_DEVICE void sync() const {}
    FASTODE_HOST_DEVICE void sync_neighbours() const {}

    // f once, in one thread; what it writes is seen by all after the next sync.
    template <class F>
    FASTODE_HOST_DEVICE void once(F&& f) const {
        f();
    }

    // The sum of f(rank) over all threads, added in the order of the device: a tree in each warp, then the warps.
    template <class F>
    FASTODE_HOST_DEVICE double sum(F&& f) const {
        constexpr int kPart = kThreads < kWarp ? kThreads : kWarp;
        double total = 0.0;
        for (int first = 0; first < kThreads; first += kPart) {
            double part[kPart];
            for (int i = 0; i < kPart; ++i) part[i] = f(first + i);
            for (int distance = kPart / 2; distance > 0; distance /= 2) {
                double next[kPart];
                for (int i = 0; i < kPart; ++i) next[i] = part[i] + part[i ^ distance];
                for (int i = 0; i < kPart; ++i) part[i] = next[i];
            }
            total = first == 0 ? part[0] : total + part[0];
        }
        return total;
    }

    // As sum, within the kLanes threads whose number differs in the last bits only: every thread gets its own sum.
    template <int kLanes, class T>
    FASTODE_HOST_DEVICE void sum_neighbours(Local<T, 1>& values) const {
        for (int distance = kLanes / 2; distance > 0; distance /= 2) {
            T next[kThreads];
            for (int r = 0; r < kThreads; ++r) next[r] = values.at(r, 0) + values.at(r ^ distance, 0);
            for (int r = 0; r < kThreads; ++r) values.at(r, 0) = next[r];
        }
    }

    double* exchange = nullptr;
};

#ifdef __CUDACC__

// What the two kinds of groups on the device share.
template <int kThreads>
struct DeviceGroup {
    static constexpr int kSize = kThreads;

    template <class T, int kCount>
    struct Local {
        T value[kCount];
        FASTODE_HOST_DEVICE T& at(int, int i) { return value[i]; }
    };

    FASTODE_HOST_DEVICE static int rank() {
#ifdef __CUDA_ARCH__
        return static_cast<int>(threadIdx.x) & (kThreads - 1);
#else
        return 0;
#endif
    }

    template <class F>
    FASTODE_HOST_DEVICE void each(F&& f) const {
        f(rank());
    }

    template <class F>
    FASTODE_HOST_DEVICE void once(F&& f) const {
        if (rank() == 0) f();
    }

    // The threads of this warp that are in the group.
    FASTODE_HOST_DEVICE static unsigned mask() {
#ifdef __CUDA_ARCH__
        if (kThreads >= kWarp) return 0xffffffffU;
        const unsigned first = threadIdx.x & (kWarp - 1) & ~(kThreads - 1);
        return ((1U << (kThreads & (kWarp - 1))) - 1U) << first;
#else
        return 0;
#endif
    }

    // Within the threads of a warp.
    FASTODE_HOST_DEVICE static void sync_neighbours() {
#ifdef __CUDA_ARCH__
        __syncwarp(mask());
#endif
    }

    template <int kLanes, class T>
    FASTODE_HOST_DEVICE static T tree(T value) {
#ifdef __CUDA_ARCH__
        FASTODE_UNROLL
        for (int distance = kLanes / 2; distance > 0; distance /= 2) {
            value += __shfl_xor_sync(mask(), value, distance);
        }
#endif
        return value;
    }

    template <int kLanes, class T>
    FASTODE_HOST_DEVICE void sum_neighbours(Local<T, 1>& values) const {
        values.at(0, 0) = tree<kLanes>(values.at(0, 0));
    }
};

// 2, 4, ..., 32 threads of one warp.
template <int kThreads>
struct WarpGroup : DeviceGroup<kThreads> {
    static_assert(kThreads <= kWarp, "a block is needed");

    FASTODE_HOST_DEVICE void sync() const {
#ifdef __CUDA_ARCH__
        __syncwarp(this->mask());
#endif
    }

    template <class F>
    FASTODE_HOST_DEVICE double sum(F&& f) const {
        return this->template tree<kThreads>(f(this->rank()));
    }

    double* exchange = nullptr;
};

// All threads of a block. `exchange`, in shared memory, has room for one number of each warp.
template <int kThreads>
struct BlockGroup : DeviceGroup<kThreads> {
    static_assert(kThreads % kWarp == 0, "whole warps");

    FASTODE_HOST_DEVICE void sync() const {
#ifdef __CUDA_ARCH__
        __syncthreads();
#endif
    }

    template <class F>
    FASTODE_HOST_DEVICE double sum(F&& f) const {
        const double part = this->template tree<kWarp>(f(this->rank()));
        const int warp = this->rank() / kWarp;
        if (this->rank() % kWarp == 0) exchange[warp] = part;
        sync();
        double total = exchange[0];
        for (int i = 1; i < kThreads / kWarp; ++i) total += exchange[i];
        sync();
        return total;
    }

    double* exchange = nullptr;
};

#endif  // __CUDACC__

}  // namespace fastode
