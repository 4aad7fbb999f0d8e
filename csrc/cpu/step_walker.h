// Reads a record back to front for the discrete adjoint.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/step_record.h"

namespace fastode {

// Outputs and their gradients, on the caller's memory.
template <class T>
struct OutputGradients {
    int64_t batch, width, n_times;
    int degree;
    const double* times;  // (n_times, batch)
    const T* grad_ys;     // (n_times, batch, width)
    const T* grad_coefs;  // (steps, degree + 1, width), null if the dense output has no gradient
};

// Lanes are samples in the caller's order; a lane whose sample took no step number j stands still there, with h = 0.
template <class T>
class StepWalker {
public:
    StepWalker(std::shared_ptr<const StepRecord<T>> record, const OutputGradients<T>& outputs,
               std::vector<int64_t> samples);

    // States of the first n lanes at the start of step j, a multiple of the record's spacing.
    void states(int64_t j, int64_t n, T* y) const;

    // Start and signed size of step j of the first n lanes.
    void steps(int64_t j, int64_t n, double* t, double* h) const;

    // Adds the gradients of outputs at the end of step j to p (n, width), and collects those inside the step and of the
    // dense output as gradients of the polynomial's coefficients, g (degree + 1, n, width). Returns whether there are
    // any of the latter; g is not written otherwise.
    bool outputs(int64_t j, int64_t n, T* p, T* g) const;

private:
    bool took(size_t lane, int64_t j) const { return record_->count()[static_cast<size_t>(samples_[lane])] > j; }
    int64_t first_output_after(double t, double direction, int64_t sample) const;
    double time(int64_t e, int64_t sample) const { return outputs_.times[e * outputs_.batch + sample]; }

    std::shared_ptr<const StepRecord<T>> record_;
    OutputGradients<T> outputs_;
    std::vector<int64_t> samples_;
};

}  // namespace fastode
