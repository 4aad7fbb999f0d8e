// The kernels of the `stepped` backend, for an executor that runs them: on_device (step_kernels.cu) or on_host
// (step_host.cpp). Each is a function object of one element, or of one lane and the group of threads that works on it.
#pragma once

#include "cuda/step_arithmetic.h"
#include "cuda/step_launch.h"

namespace fastode {

// Rows up to these widths are worked on by 4 threads and by a warp; wider ones by a block, or a block for each chunk.
constexpr int64_t kNarrow = 16, kWide = 1024;
constexpr int kBlock = 256;

template <class T>
struct StartSample {
    StepState<T> a;
    const T *y0, *k1;
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t b, T*) const {
        start_sample(group, a, b, y0, k1);
    }
};

template <class T>
struct ProbeSample {
    StepState<T> a;
    T *t, *y;
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t b, T*) const {
        probe_sample(group, a, b, t, y);
    }
};

template <class T>
struct ChooseFirstStep {
    StepState<T> a;
    const T* value;
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t b, T*) const {
        choose_first_step(group, a, b, value);
    }
};

// One stage: kCount components of y, and the time where they are the first ones of their lane.
template <class T, int kCount>
struct Stage {
    StepState<T> a;
    Terms<T> terms;
    int i;
    double c;
    const T* value;
    T *keep, *t, *y;
    FASTODE_HOST_DEVICE void operator()(int64_t index) const {
        const int64_t at = index * kCount;
        // Divisions of 32 bits are several times as fast.
        const bool small = at <= INT32_MAX && a.width <= INT32_MAX;
        const int64_t lane =
            small ? static_cast<int64_t>(static_cast<uint32_t>(at) / static_cast<uint32_t>(a.width)) : at / a.width;
        const double step = a.real[kStep * a.batch + a.sample[lane]];
        if (at == lane * a.width) stage_time(a, c, t, lane);
        if (index == 0 && i == 1) a.counters[kGoingOn] = 0;
        stage_elements<kCount>(terms, a.y, step, value, keep, y, at);
    }
};

// The same where there are no components.
template <class T>
struct StageTime {
    StepState<T> a;
    int i;
    double c;
    T* t;
    FASTODE_HOST_DEVICE void operator()(int64_t lane) const {
        stage_time(a, c, t, lane);
        if (lane == 0 && i == 1) a.counters[kGoingOn] = 0;
    }
};

template <class T>
struct FinishLane {
    StepState<T> a;
    Terms<T> error;
    const T *y1, *last;
    const T* k[kMostStages];
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t lane, T* weights) const {
        const int64_t b = a.sample[lane];
        const double step = a.real[kStep * a.batch + b];
        const double sum =
            group.sum([&](int rank) { return error_sum(a, error, lane, step, y1, last, rank, a.width, Group::kSize); });
        group.once([&] { decide(a, b, mean_root(a, sum)); });
        group.sync();
        commit(group, a, lane, k, y1, weights, 0, a.width);
    }
};

template <class T>
struct NormOfChunk {
    StepState<T> a;
    Terms<T> error;
    const T *y1, *last;
    int64_t chunks;
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t item, T*) const {
        const int64_t lane = item / chunks, begin = item % chunks * kChunk;
        const int64_t end = begin + kChunk < a.width ? begin + kChunk : a.width;
        const double step = a.real[kStep * a.batch + a.sample[lane]];
        const double sum = group.sum(
            [&](int rank) { return error_sum(a, error, lane, step, y1, last, begin + rank, end, Group::kSize); });
        group.once([&] { a.partial[item] = sum; });
    }
};

template <class T>
struct DecideLane {
    StepState<T> a;
    int64_t chunks;
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t lane, T*) const {
        const double sum = group.sum([&](int rank) {
            double part = 0.0;
            for (int64_t i = rank; i < chunks; i += Group::kSize) part += a.partial[lane * chunks + i];
            return part;
        });
        group.once([&] { decide(a, a.sample[lane], mean_root(a, sum)); });
    }
};

template <class T>
struct CommitChunk {
    StepState<T> a;
    const T* y1;
    const T* k[kMostStages];
    int64_t chunks;
    template <class Group>
    FASTODE_HOST_DEVICE void operator()(const Group& group, int64_t item, T* weights) const {
        const int64_t lane = item / chunks, begin = item % chunks * kChunk;
        commit(group, a, lane, k, y1, weights, begin, begin + kChunk < a.width ? begin + kChunk : a.width);
    }
};

template <class T>
struct RecordedStates {
    WalkState<T> a;
    int64_t j;
    T* y;
    FASTODE_HOST_DEVICE void operator()(int64_t at) const { y[at] = recorded_state(a, at / a.width, j, at % a.width); }
};

template <class T>
struct RecordedSteps {
    WalkState<T> a;
    int64_t j;
    double *t, *h;
    FASTODE_HOST_DEVICE void operator()(int64_t lane) const { recorded_step(a, lane, j, t, h); }
};

// Marks the step numbers at which any sample has an output inside its step.
template <class T>
struct MarkInside {
    WalkState<T> a;
    bool* inside;
    FASTODE_HOST_DEVICE void operator()(int64_t position) const {
        const StepRow& row = a.table[position];
        if (has_output_inside(a, row)) inside[row.number] = true;
    }
};

template <class T>
struct OutputGradients {
    WalkState<T> a;
    int64_t j, n;
    T *p, *g;
    FASTODE_HOST_DEVICE void operator()(int64_t at) const {
        output_gradients(a, at / a.width, n, j, at % a.width, p, g);
    }
};

template <class T>
struct Combine {
    Terms<T> terms;
    const T* base;
    const double* scale;
    T* out;
    int64_t width;
    FASTODE_HOST_DEVICE void operator()(int64_t at) const { combine_element(terms, base, scale, out, at, at / width); }
};

// What step_launch.h declares, for an executor with two templates, groups<kThreads>(f, how many, stream) and
// elements(f, how many, stream).
template <class Exec, class T>
struct StepPrograms {
    template <class F>
    static void lanes(const F& f, const StepState<T>& a, int64_t items, const Stream& stream) {
        if (a.width <= kNarrow) {
            Exec::template groups<4, T>(f, items, stream);
        } else if (a.width <= kWide) {
            Exec::template groups<kWarp, T>(f, items, stream);
        } else {
            Exec::template groups<kBlock, T>(f, items, stream);
        }
    }

    static void start(const StepState<T>& a, const T* y0, const T* k1, const Stream& stream) {
        lanes(StartSample<T>{a, y0, k1}, a, a.batch, stream);
    }

    static void probe(const StepState<T>& a, T* t, T* y, const Stream& stream) {
        lanes(ProbeSample<T>{a, t, y}, a, a.batch, stream);
    }

    static void choose(const StepState<T>& a, const T* value, const Stream& stream) {
        lanes(ChooseFirstStep<T>{a, value}, a, a.batch, stream);
    }

    static void stage(const StepState<T>& a, const Terms<T>& terms, int i, double c, const T* value, T* t, T* y,
                      const Stream& stream) {
        T* keep = i == 1 ? nullptr : a.k + (i - 1) * a.batch * a.width;
        const T* newest = i == 1 ? nullptr : value;
        constexpr int kCount = 16 / sizeof(T);
        bool aligned = a.width % kCount == 0;
        const T* const used[] = {a.y, a.k, newest, y};
        for (const T* at : used) aligned = aligned && reinterpret_cast<uintptr_t>(at) % 16 == 0;
        aligned = aligned && a.batch * a.width % kCount == 0;  // then every stage's plane begins at such an address
        const int64_t size = a.lanes * a.width;
        if (size == 0) {
            Exec::elements(StageTime<T>{a, i, c, t}, a.lanes, stream);
        } else if (aligned) {
            Exec::elements(Stage<T, kCount>{a, terms, i, c, newest, keep, t, y}, size / kCount, stream);
        } else {
            Exec::elements(Stage<T, 1>{a, terms, i, c, newest, keep, t, y}, size, stream);
        }
    }

    static void finish(const StepState<T>& a, const Terms<T>& error, const T* y1, const T* last, const Stream& stream) {
        const T* k[kMostStages];
        for (int j = 0; j + 1 < a.s; ++j) k[j] = a.k + j * a.batch * a.width;
        k[a.s - 1] = last;
        if (a.width <= kChunked) {
            FinishLane<T> f{a, error, y1, last, {}};
            for (int j = 0; j < a.s; ++j) f.k[j] = k[j];
            lanes(f, a, a.lanes, stream);
            return;
        }
        const int64_t chunks = chunks_of(a.width);
        Exec::template groups<kBlock, T>(NormOfChunk<T>{a, error, y1, last, chunks}, a.lanes * chunks, stream);
        Exec::template groups<kWarp, T>(DecideLane<T>{a, chunks}, a.lanes, stream);
        CommitChunk<T> f{a, y1, {}, chunks};
        for (int j = 0; j < a.s; ++j) f.k[j] = k[j];
        Exec::template groups<kBlock, T>(f, a.lanes * chunks, stream);
    }

    static void states(const WalkState<T>& a, int64_t j, int64_t n, T* y, const Stream& stream) {
        Exec::elements(RecordedStates<T>{a, j, y}, n * a.width, stream);
    }

    static void steps(const WalkState<T>& a, int64_t j, int64_t n, double* t, double* h, const Stream& stream) {
        Exec::elements(RecordedSteps<T>{a, j, t, h}, n, stream);
    }

    static void mark_inside(const WalkState<T>& a, int64_t n, bool* inside, const Stream& stream) {
        Exec::elements(MarkInside<T>{a, inside}, n, stream);
    }

    static void outputs(const WalkState<T>& a, int64_t j, int64_t n, T* p, T* g, const Stream& stream) {
        Exec::elements(OutputGradients<T>{a, j, n, p, g}, n * a.width, stream);
    }

    static void combine(const Terms<T>& terms, const T* base, const double* scale, T* out, int64_t n, int64_t width,
                        const Stream& stream) {
        Exec::elements(Combine<T>{terms, base, scale, out, width}, n * width, stream);
    }
};

}  // namespace fastode
