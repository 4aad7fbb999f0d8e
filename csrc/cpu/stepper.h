// One forward solve of the `stepped` backend: everything of a step but the field.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/step_control.h"
#include "cpu/step_record.h"

namespace fastode {

// A Runge-Kutta method in first-same-as-last form: row-major a (s, s), e (s) or empty, q (s, degree).
struct Method {
    int s = 0, degree = 0;
    std::vector<double> c, a, e, q;
};

// What a solve is given. Pointers belong to the caller and outlive the stepper.
template <class T>
struct SolveSpec {
    int64_t batch, width, n_times;
    const double* times;      // (n_times, batch)
    const double* step_size;  // (batch,), null when adaptive; infinite: from output time to output time
    const T* rtol;            // (width,)
    const T* atol;            // (width,)
    T* ys;                    // (n_times, batch, width), filled with NaN
    int64_t max_steps;
    double first_step;  // 0 chooses
    bool dense;
};

struct SampleStats {
    std::vector<int64_t> status, n_accepted, n_rejected, n_evals;
    std::vector<double> reached, last_step, last_ratio;  // of the last attempt its signed size and error ratio, or NaN
};

// Samples in progress occupy lanes 0..n-1. A step: begin_step, then for each stage i = 1..s-1 stage(i, ...) and the
// caller's evaluation, then finish_step. compact drops the lanes that are done.
template <class T>
class Stepper {
public:
    Stepper(const SolveSpec<T>& spec, Method method, const StepControl& control, std::shared_ptr<StepRecord<T>> record);

    // Lanes for all samples; writes the outputs at the start. k1 is the field at (t_0, y0).
    void start(const T* y0, const T* k1);

    // Time and state of the evaluation that chooses the first step.
    void probe(T* t, T* y);
    void choose_first_step(const T* k);

    // Time and state of stage i; k is the value of stage i - 1, not read for i = 1.
    void stage(int i, const T* k, T* t, T* y);

    // Ends the step with the state y1 and value k of the last stage: accepts or rejects, writes outputs and records.
    // Returns how many lanes are still running.
    int64_t finish_step(const T* y1, const T* k);

    // Drops the lanes that are done.
    void compact();

    int64_t lanes() const { return static_cast<int64_t>(lane_.size()); }
    std::vector<int64_t> running() const;  // lanes still running, in order
    const SampleStats& stats() const { return stats_; }
    const std::vector<T>& dense_rows() const { return dense_; }

private:
    struct Lane {
        int64_t sample, next_output, row;  // row: place of this step's polynomial
        double t, h, end, direction, previous, before;
        Attempt attempt;
        T* keep;  // where the record wants the state; null: nowhere
        bool accepted;
    };

    void begin_step();
    double time(int64_t e, int64_t sample) const { return spec_.times[e * spec_.batch + sample]; }
    bool decide(Lane& lane, double ratio);
    void store(Lane& lane, int64_t index, const T* y1, const T* k);
    void combine(T* out, const T* base, const double* scale, const double* coef, int m, const T* const* x, int64_t n);
    void norms(const T* y1, const T* last, const double* coef, int m, const T* const* x, const double* scale,
               double* out);
    T* k(int i) { return k_.data() + static_cast<int64_t>(i) * stride_; }

    SolveSpec<T> spec_;
    Method method_;
    StepControl control_;
    std::shared_ptr<StepRecord<T>> record_;
    SampleStats stats_;
    std::vector<Lane> lane_;
    std::vector<T> y_, k_, dense_;
    std::vector<double> step_, ratio_, d1_, h0_;
    std::vector<int64_t> accepting_;
    int64_t stride_;  // elements between stages in k_
};

}  // namespace fastode
