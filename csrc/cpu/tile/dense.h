// The polynomials between the ends of recorded steps: fastode/interpolant.py.
#pragma once

#include <cstdint>

#include "cpu/tile/leaves.h"
#include "cpu/tile/method.h"
#include "cpu/tile/program.h"

namespace fastode {

// A record with the states of all steps (cpu/tile/record.h), and where the polynomials go.
template <class T>
struct TileDense {
    int64_t batch, longest;  // most steps of a sample
    const int64_t* offsets;  // (batch + 1)
    const double* table;     // (steps, 3): t, t_next, h
    const T* states;         // (steps, dim)
    const double* reached;   // (batch), where a sample without steps is
    TileLeaves<T> leaves;    // of the samples
    T* coefs;                // (steps, degree + 1, dim)
    double *start, *size;    // (longest, batch), padded with the time reached and 0
    int64_t* rows;           // (longest, batch), of coefs, padded with the last one
    int threads;
};

// From stages that are computed again, many steps at a time.
template <class T>
void tile_dense(const TileProgram& program, const TileMethod& method, const TileDense<T>& dense);

}  // namespace fastode
