#include "cpu/combine.h"

#include "core/isa_math.h"

namespace fastode::FASTODE_ISA {
namespace {

constexpr int64_t kBlock = 512;    // elements of the running sum, held in the first-level cache
constexpr int kTermsPerPass = 8;   // streams read at once: more would run out of registers and prefetchers
constexpr int64_t kShortRow = 16;  // below this a loop over one row is too short to be worth vectorising

// sum[i] (+)= coef[0] x[0][i] + ... + coef[M-1] x[M-1][i], in this order. M is a constant so that the inner loop
// unrolls and the compiler vectorises over i; vector body and remainder do the same arithmetic.
template <class T, int M, bool kFirst>
void add_terms(T* sum, const T* coef, const T* const* x, int64_t offset, int64_t count) {
    const T* term[M];
    for (int j = 0; j < M; ++j) term[j] = x[j] + offset;
    T c[M];
    for (int j = 0; j < M; ++j) c[j] = coef[j];
    FASTODE_INDEPENDENT_ITERATIONS
    for (int64_t i = 0; i < count; ++i) {
        T value = kFirst ? c[0] * term[0][i] : multiply_add(c[0], term[0][i], sum[i]);
        for (int j = 1; j < M; ++j) value = multiply_add(c[j], term[j][i], value);
        sum[i] = value;
    }
}

template <class T, bool kFirst>
void add_terms(int m, T* sum, const T* coef, const T* const* x, int64_t offset, int64_t count) {
    switch (m) {
        case 1: return add_terms<T, 1, kFirst>(sum, coef, x, offset, count);
        case 2: return add_terms<T, 2, kFirst>(sum, coef, x, offset, count);
        case 3: return add_terms<T, 3, kFirst>(sum, coef, x, offset, count);
        case 4: return add_terms<T, 4, kFirst>(sum, coef, x, offset, count);
        case 5: return add_terms<T, 5, kFirst>(sum, coef, x, offset, count);
        case 6: return add_terms<T, 6, kFirst>(sum, coef, x, offset, count);
        case 7: return add_terms<T, 7, kFirst>(sum, coef, x, offset, count);
        default: return add_terms<T, 8, kFirst>(sum, coef, x, offset, count);
    }
}

// out = base + scale * sum for `count` elements, with one factor for all or one for each.
template <class T, class Factor>
void finish(T* out, const T* base, Factor factor, const T* sum, int64_t count) {
    if (base != nullptr) {
        FASTODE_INDEPENDENT_ITERATIONS
        for (int64_t i = 0; i < count; ++i) out[i] = multiply_add(factor(i), sum[i], base[i]);
    } else {
        FASTODE_INDEPENDENT_ITERATIONS
        for (int64_t i = 0; i < count; ++i) out[i] = factor(i) * sum[i];
    }
}

// The elements [first, first + count) of the row-major array, count <= kBlock; first may lie inside a row.
template <class T>
void combine_block(const CombineArgs<T>& a, int64_t first, int64_t count) {
    T sum[kBlock];
    for (int j = 0; j < a.n_terms; j += kTermsPerPass) {
        const int m = a.n_terms - j < kTermsPerPass ? a.n_terms - j : kTermsPerPass;
        if (j == 0) {
            add_terms<T, true>(m, sum, a.coef, a.x, first, count);
        } else {
            add_terms<T, false>(m, sum, a.coef + j, a.x + j, first, count);
        }
    }
    T* out = a.out + first;
    const T* base = a.base == nullptr ? nullptr : a.base + first;
    if (a.scale == nullptr) {
        finish(out, base, [](int64_t) { return T(1); }, sum, count);
        return;
    }
    int64_t row = first / a.d;
    int64_t left = (row + 1) * a.d - first;  // elements of this row that are still to come
    if (a.d < kShortRow) {
        // Write a fixed number of copies of each row's factor and let the next row overwrite what was too many.
        T factors[kBlock + kShortRow];
        for (int64_t i = 0; i < count; i += left, left = a.d, ++row) {
            const T factor = static_cast<T>(a.scale[row]);
            for (int64_t k = 0; k < kShortRow; ++k) factors[i + k] = factor;
        }
        finish(out, base, [&factors](int64_t i) { return factors[i]; }, sum, count);
        return;
    }
    for (int64_t i = 0; i < count; ++row, left = a.d) {
        const int64_t part = left < count - i ? left : count - i;
        const T factor = static_cast<T>(a.scale[row]);
        finish(out + i, base == nullptr ? nullptr : base + i, [factor](int64_t) { return factor; }, sum + i, part);
        i += part;
    }
}

template <class T>
void combine(const CombineArgs<T>& a, int64_t begin, int64_t end) {
    const int64_t last = end * a.d;
    for (int64_t first = begin * a.d; first < last; first += kBlock) {
        combine_block(a, first, last - first < kBlock ? last - first : kBlock);
    }
}

}  // namespace

const CombineKernels combine_kernels = {combine<float>, combine<double>};

}  // namespace fastode::FASTODE_ISA
