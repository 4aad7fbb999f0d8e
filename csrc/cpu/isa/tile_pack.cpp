#include "cpu/isa/vec.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

// Square blocks of kBlock rows, held in registers of 32 bytes also where there are wider ones.
template <class T>
struct Square;

#if defined(__AVX2__)
template <>
struct Square<float> {
    static constexpr int kBlock = 8;
    [[gnu::always_inline]] static void move(const float* const* from, float* const* to) {
        __m256 r[8], s[8];
        for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from[i]);
        for (int i = 0; i < 4; ++i) {
            s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for (int i = 0; i < 2; ++i) {
            r[4 * i] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0x44);
            r[4 * i + 1] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0xee);
            r[4 * i + 2] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0x44);
            r[4 * i + 3] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            _mm256_storeu_ps(to[i], _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
            _mm256_storeu_ps(to[i + 4], _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
        }
    }
};
template <>
struct Square<double> {
    static constexpr int kBlock = 4;
    [[gnu::always_inline]] static void move(const double* const* from, double* const* to) {
        __m256d r[4];
        for (int i = 0; i < 4; ++i) r[i] = _mm256_loadu_pd(from[i]);
        const __m256d a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
        const __m256d c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
        _mm256_storeu_pd(to[0], _mm256_permute2f128_pd(a, c, 0x20));
        _mm256_storeu_pd(to[1], _mm256_permute2f128_pd(b, d, 0x20));
        _mm256_storeu_pd(to[2], _mm256_permute2f128_pd(a, c, 0x31));
        _mm256_storeu_pd(to[3], _mm256_permute2f128_pd(b, d, 0x31));
    }
};
#else
template <class T>
struct Square {
    static constexpr int kBlock = 4;
    [[gnu::always_inline]] static void move(const T* const* from, T* const* to) {
        T r[4][4];
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j) r[j][i] = from[i][j];
        }
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j) to[i][j] = r[i][j];
        }
    }
};
#endif

template <class T>
void spread(T* out, int64_t stride, const T* const* rows, int64_t n_rows, int64_t n_columns) {
    constexpr int B = Square<T>::kBlock;
    int64_t r = 0;
    for (; r + B <= n_rows; r += B) {
        const T* from[B];
        T* to[B];
        int64_t c = 0;
        for (; c + B <= n_columns; c += B) {
            for (int i = 0; i < B; ++i) {
                from[i] = rows[r + i] + c;
                to[i] = out + (c + i) * stride + r;
            }
            Square<T>::move(from, to);
        }
        for (; c < n_columns; ++c) {
            for (int i = 0; i < B; ++i) out[c * stride + r + i] = rows[r + i][c];
        }
    }
    for (; r < n_rows; ++r) {
        for (int64_t c = 0; c < n_columns; ++c) out[c * stride + r] = rows[r][c];
    }
}

template <class T>
void collect(T* const* rows, const T* in, int64_t stride, int64_t n_rows, int64_t n_columns) {
    constexpr int B = Square<T>::kBlock;
    int64_t r = 0;
    for (; r + B <= n_rows; r += B) {
        const T* from[B];
        T* to[B];
        int64_t c = 0;
        for (; c + B <= n_columns; c += B) {
            for (int i = 0; i < B; ++i) {
                from[i] = in + (c + i) * stride + r;
                to[i] = rows[r + i] + c;
            }
            Square<T>::move(from, to);
        }
        for (; c < n_columns; ++c) {
            for (int i = 0; i < B; ++i) rows[r + i][c] = in[c * stride + r + i];
        }
    }
    for (; r < n_rows; ++r) {
        for (int64_t c = 0; c < n_columns; ++c) rows[r][c] = in[c * stride + r];
    }
}

}  // namespace

const TilePackKernels tile_pack_kernels = {{spread<float>, collect<float>}, {spread<double>, collect<double>}};

}  // namespace fastode::FASTODE_ISA
