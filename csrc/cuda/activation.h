// Activations and their derivatives, for host and device, as torch defines them.
#pragma once

#include <cmath>

#include "cuda/net_state.h"

namespace fastode {

FASTODE_HOST_DEVICE inline float exp_of(float x) { return expf(x); }
FASTODE_HOST_DEVICE inline double exp_of(double x) { return exp(x); }
FASTODE_HOST_DEVICE inline float expm1_of(float x) { return expm1f(x); }
FASTODE_HOST_DEVICE inline double expm1_of(double x) { return expm1(x); }
FASTODE_HOST_DEVICE inline float log1p_of(float x) { return log1pf(x); }
FASTODE_HOST_DEVICE inline double log1p_of(double x) { return log1p(x); }
FASTODE_HOST_DEVICE inline float tanh_of(float x) { return tanhf(x); }
FASTODE_HOST_DEVICE inline double tanh_of(double x) { return tanh(x); }
FASTODE_HOST_DEVICE inline float sin_of(float x) { return sinf(x); }
FASTODE_HOST_DEVICE inline double sin_of(double x) { return sin(x); }
FASTODE_HOST_DEVICE inline float cos_of(float x) { return cosf(x); }
FASTODE_HOST_DEVICE inline double cos_of(double x) { return cos(x); }
FASTODE_HOST_DEVICE inline float erf_of(float x) { return erff(x); }
FASTODE_HOST_DEVICE inline double erf_of(double x) { return erf(x); }

template <class T>
FASTODE_HOST_DEVICE inline T sigmoid_of(T x) {
    return T(1) / (T(1) + exp_of(-x));
}

// act(z); with kSlope also act'(z).
template <bool kSlope, class T>
FASTODE_HOST_DEVICE inline T activate(Activation activation, T z, T* slope) {
    switch (activation) {
        case Activation::tanh: {
            const T y = tanh_of(z);
            if (kSlope) *slope = T(1) - y * y;
            return y;
        }
        case Activation::sigmoid: {
            const T y = sigmoid_of(z);
            if (kSlope) *slope = y * (T(1) - y);
            return y;
        }
        case Activation::relu: {
            // A NaN stays one.
            if (kSlope) *slope = z > T(0) ? T(1) : T(0);
            return z <= T(0) ? T(0) : z;
        }
        case Activation::sin: {
            if (kSlope) *slope = cos_of(z);
            return sin_of(z);
        }
        case Activation::softplus: {
            if (kSlope) *slope = z > T(20) ? T(1) : sigmoid_of(z);
            return z > T(20) ? z : log1p_of(exp_of(z));
        }
        case Activation::silu: {
            const T s = sigmoid_of(z);
            if (kSlope) *slope = s * (T(1) + z * (T(1) - s));
            return z * s;
        }
        case Activation::elu: {
            const T y = z > T(0) ? z : expm1_of(z);
            if (kSlope) *slope = z > T(0) ? T(1) : y + T(1);
            return y;
        }
        case Activation::gelu: {
            const T half = T(0.5) * (T(1) + erf_of(z * T(0.70710678118654752)));
            if (kSlope) *slope = half + z * exp_of(T(-0.5) * z * z) * T(0.39894228040143268);
            return z * half;
        }
        default: {
            if (kSlope) *slope = T(1);
            return z;
        }
    }
}

}  // namespace fastode
