// The discrete adjoint of one sample's whole solve by a group of threads: for host and device.
//
// Stages are computed again from the recorded state at the start of each step; gradients of the matrices stay with the
// threads that hold their numbers and are written once.
#pragma once

#include "core/interpolant.h"
#include "cuda/net_field.h"
#include "cuda/net_pages.h"
#include "cuda/net_stream.h"

namespace fastode {

template <class Shape, class T, class Group>
struct NetBackward {
    using Field = NetFieldOf<Shape, T, Group, true>;
    static constexpr int kDim = Shape::kDim, kLayers = Shape::kLayers;
    // Gradients of the matrices: in registers, or where the matrices are streamed in memory.
    static constexpr bool kInRegisters = !Shape::kStreamed;
    static constexpr int kCols = Field::kCols, kPack = Field::kPack;
    using P = NetPack<T, kPack>;
    template <int kCount>
    using Local = typename Group::template Local<T, kCount>;

    const Group& group;
    const NetAdjoint<T>& a;
    Field field;
    // In shared memory, (s, kDim) each: what goes into each layer, the slope of its activation, the stages and later
    // their pullbacks; (2, kDim) vectors that are multiplied by transposed matrices; (degree + 1, kDim) gradients by
    // the step's polynomial.
    T *inputs[kLayers], *slopes[kLayers], *stages, *pulled, *inner;
    Local<kInRegisters ? kLayers * kCols : 1> grad_rows;
    Local<kLayers> grad_bias;
    Local<1> y, p, value;
    int turn = 0;

    FASTODE_HOST_DEVICE NetBackward(const Group& g, const NetAdjoint<T>& adjoint, T* shared)
        : group(g), a(adjoint), field{g, shared} {
        const int plane = a.method.s * kDim;
        T* at = shared + Field::kReserved;
        for (int l = 0; l < kLayers; ++l) {
            inputs[l] = at;
            slopes[l] = at + plane;
            at += 2 * plane;
        }
        stages = at;
        pulled = stages + plane;
        inner = pulled + 2 * kDim;
    }

    FASTODE_HOST_DEVICE double time(int64_t e, int64_t b) const {
        return a.times[e * a.time_row_stride + b * a.time_sample_stride];
    }
    FASTODE_HOST_DEVICE bool real_row(int rank) const { return Field::row_of(rank) < a.width; }
    FASTODE_HOST_DEVICE bool writes(int rank) const { return real_row(rank) && Field::leads(rank); }

    // y + step sum_j a_ij k_j in the thread's row.
    FASTODE_HOST_DEVICE void state_of_stage(int i, double step) {
        const auto factor = static_cast<T>(step);
        const T* coef = a.method.a + i * (i - 1) / 2;
        group.each([&](int rank) {
            T sum = T(0);
            for (int j = 0; j < i; ++j) {
                if (coef[j] != T(0)) sum = multiply_add(coef[j], stages[j * kDim + Field::row_of(rank)], sum);
            }
            value.at(rank, 0) = multiply_add(factor, sum, y.at(rank, 0));
        });
    }

    template <int l>
    FASTODE_HOST_DEVICE void finish_layer(int i, Local<1>& z, T* to) {
        group.each([&](int rank) {
            const int row = Field::row_of(rank);
            T slope;
            const T in = z.at(rank, 0) + field.bias.at(rank, l);
            const T out = activate<true>(a.layer[l].activation, in, &slope);
            const bool there = row < a.layer[l].rows;
            if (Field::leads(rank)) {
                to[row] = there ? out : T(0);
                slopes[l][i * kDim + row] = there ? slope : T(0);
            }
        });
        field.sync_row();
    }

    // Stage i of the step, and what its pullback needs.
    FASTODE_HOST_DEVICE void evaluate(int i) {
        T* x = inputs[0] + i * kDim;
        group.each([&](int rank) {
            if (Field::leads(rank)) x[Field::row_of(rank)] = value.at(rank, 0);
        });
        group.sync();
        Local<1> z;
        field.template product<0>(x, z);
        if constexpr (kLayers == 2) {
            T* h = inputs[kLayers - 1] + i * kDim;
            finish_layer<0>(i, z, h);
            group.sync();
            field.template product<kLayers - 1>(h, z);
        }
        finish_layer<kLayers - 1>(i, z, stages + i * kDim);
    }

    // Adds slope times g, in the thread's row, to the gradients of layer l; g becomes the gradient by its input.
    template <int l>
    FASTODE_HOST_DEVICE void pull_layer(int i, Local<1>& g) {
        T* u = pulled + turn * kDim;
        turn ^= 1;
        group.each([&](int rank) {
            const int row = Field::row_of(rank);
            const T pull = slopes[l][i * kDim + row] * g.at(rank, 0);
            g.at(rank, 0) = pull;
            if (Field::leads(rank)) u[row] = pull;
            // For the end of the step: its gradient has all stages at once.
            if constexpr (!kInRegisters) slopes[l][i * kDim + row] = pull;
        });
        group.sync();
        const T* x = inputs[l] + i * kDim;
        group.each([&](int rank) {
            const T pull = g.at(rank, 0);
            grad_bias.at(rank, l) += pull;
            if constexpr (kInRegisters) {
                const int part = Field::part_of(rank);
                FASTODE_UNROLL
                for (int k = 0; k < kCols / kPack; ++k) {
                    const P pack = *reinterpret_cast<const P*>(x + Field::column(part, k));
                    FASTODE_UNROLL
                    for (int v = 0; v < kPack; ++v) {
                        T& sum = grad_rows.at(rank, l * kCols + k * kPack + v);
                        sum = multiply_add(pull, pack.value[v], sum);
                    }
                }
            }
        });
        field.template product_transposed<l>(u, g);
    }

    // One step back: p, the gradient by the state at its end, becomes that by the state at its start, y.
    FASTODE_HOST_DEVICE void step_back(int64_t b, const double* step, int64_t& output) {
        const double t = step[0], t_next = step[1], h = step[2], direction = h > 0.0 ? 1.0 : -1.0;
        const int s = a.method.s, degree = a.method.degree;
        bool inside = false;
        for (; output >= 0; --output) {
            const double time_of = time(output, b);
            if (!(direction * (time_of - t) > 0.0)) break;
            const T* grad = a.grad_ys + (output * a.batch + b) * a.width;
            if (time_of == t_next) {
                group.each([&](int rank) {
                    if (real_row(rank)) p.at(rank, 0) += grad[Field::row_of(rank)];
                });
                continue;
            }
            double phi[kNetDegree];
            bernstein_basis((time_of - t) / h, degree, phi);
            const bool fresh = !inside;
            inside = true;
            group.each([&](int rank) {
                if (!Field::leads(rank)) return;  // the others see it after the next sync
                const int row = Field::row_of(rank);
                const T in = real_row(rank) ? grad[row] : T(0);
                inner[row] = fresh ? in : inner[row] + in;
                for (int m = 1; m <= degree; ++m) {
                    const T part = static_cast<T>(phi[m - 1]) * in;
                    inner[m * kDim + row] = fresh ? part : inner[m * kDim + row] + part;
                }
            });
        }
        const int used = inside || a.method.b[s - 1] != T(0) ? s : s - 1;
        group.each([&](int rank) { value.at(rank, 0) = y.at(rank, 0); });
        evaluate(0);
        for (int i = 1; i < used; ++i) {
            state_of_stage(i, h);
            evaluate(i);
        }
        const auto factor = static_cast<T>(h);
        Local<1> total, g;
        group.each([&](int rank) { total.at(rank, 0) = T(0); });
        // From here on the place of stage i is that of its pullback.
        for (int i = used - 1; i >= 0; --i) {
            bool any = a.method.b[i] != T(0);
            for (int m = 0; inside && m < degree; ++m) any = any || a.method.q[i][m] != 0.0;
            for (int j = i + 1; j < used; ++j) any = any || a.method.a[j * (j - 1) / 2 + i] != T(0);
            group.each([&](int rank) {
                const int row = Field::row_of(rank);
                T sum = T(0);
                const auto add = [&](T coef, T term) {
                    if (coef != T(0)) sum = multiply_add(coef, term, sum);
                };
                add(a.method.b[i], p.at(rank, 0));
                for (int m = 0; inside && m < degree; ++m) {
                    add(static_cast<T>(a.method.q[i][m]), inner[(m + 1) * kDim + row]);
                }
                for (int j = i + 1; j < used; ++j) {
                    add(a.method.a[j * (j - 1) / 2 + i], stages[j * kDim + row]);
                }
                g.at(rank, 0) = factor * sum;
            });
            if (any) {
                if constexpr (kLayers == 2) pull_layer<kLayers - 1>(i, g);
                pull_layer<0>(i, g);
            } else {
                group.each([&](int rank) {
                    g.at(rank, 0) = T(0);
                    if constexpr (!kInRegisters) {
                        for (int l = 0; l < kLayers; ++l) slopes[l][i * kDim + rank] = T(0);
                    }
                });
            }
            group.each([&](int rank) {
                if (Field::leads(rank)) stages[i * kDim + Field::row_of(rank)] = g.at(rank, 0);
                total.at(rank, 0) += g.at(rank, 0);
            });
            field.sync_row();
        }
        group.each([&](int rank) {
            T sum = p.at(rank, 0) + total.at(rank, 0);
            if (inside) sum += inner[Field::row_of(rank)];
            p.at(rank, 0) = real_row(rank) ? sum : T(0);
        });
        group.sync();  // the vectors are free again
        if constexpr (!kInRegisters) {
            for (int l = 0; l < kLayers; ++l) field.add_gradient(a.layer[l], b, slopes[l], inputs[l], used);
            group.sync();
        }
    }

    // y := the state a step of this size on.
    FASTODE_HOST_DEVICE void step_forward(double h) {
        const int s = a.method.s;
        group.each([&](int rank) { value.at(rank, 0) = y.at(rank, 0); });
        for (int i = 0; i + 1 < s; ++i) {
            if (i > 0) state_of_stage(i, h);
            evaluate(i);
        }
        state_of_stage(s - 1, h);
        group.each([&](int rank) { y.at(rank, 0) = value.at(rank, 0); });
        group.sync();
    }

    FASTODE_HOST_DEVICE void read_state(const T* from) {
        group.each([&](int rank) { y.at(rank, 0) = real_row(rank) ? from[Field::row_of(rank)] : T(0); });
    }

    FASTODE_HOST_DEVICE void write_state(T* to) {
        group.each([&](int rank) {
            if (writes(rank)) to[Field::row_of(rank)] = y.at(rank, 0);
        });
        field.sync_row();
    }

    // scratch: (every, width), the group's own; null where every = 1.
    FASTODE_HOST_DEVICE void run(int64_t b, T* scratch) {
        group.each([&](int rank) {
            p.at(rank, 0) = T(0);
            if constexpr (kInRegisters) {
                FASTODE_UNROLL
                for (int i = 0; i < kLayers * kCols; ++i) grad_rows.at(rank, i) = T(0);
            }
            FASTODE_UNROLL
            for (int l = 0; l < kLayers; ++l) grad_bias.at(rank, l) = T(0);
        });
        if constexpr (!kInRegisters) {
            for (int l = 0; l < kLayers; ++l) field.add_gradient(a.layer[l], b, nullptr, nullptr, 0);
        }
        const int64_t n = a.whole[kNetAccepted * a.batch + b];
        const bool solved = a.whole[kNetStatus * a.batch + b] == static_cast<int64_t>(Status::success);
        if (solved && n > 0) walk(b, n, scratch);
        write_gradients(b);
    }

    FASTODE_HOST_DEVICE void walk(int64_t b, int64_t n, T* scratch) {
        field.load(a.layer, b);
        int64_t output = a.n_times - 1, page = a.pages.last[b];
        const int64_t every = a.pages.every, per_page = a.pages.per_page * every;
        for (int64_t first = (n - 1) / every * every; first >= 0; first -= every) {
            const int64_t length = n - first < every ? n - first : every;
            const NetPlace<T> start = place_of(a.pages, page, first, a.width);
            read_state(start.state);
            for (int64_t j = 1; j < length; ++j) {
                write_state(scratch + (j - 1) * a.width);
                step_forward(place_of(a.pages, page, first + j - 1, a.width).step[2]);
            }
            for (int64_t j = length - 1; j >= 0; --j) {
                if (j + 1 < length) read_state(scratch + j * a.width);
                step_back(b, place_of(a.pages, page, first + j, a.width).step, output);
            }
            if (first % per_page == 0) page = page_before(a.pages, page);
        }
    }

    // Neighbouring threads neighbouring numbers, by way of shared memory.
    FASTODE_HOST_DEVICE void write_gradients(int64_t b) {
        group.each([&](int rank) {
            if (writes(rank)) a.grad_y0[b * a.width + Field::row_of(rank)] = p.at(rank, 0);
        });
        FASTODE_UNROLL
        for (int l = 0; l < kLayers; ++l) {
            const NetLayer<T>& layer = a.layer[l];
            group.each([&](int rank) {
                const int row = Field::row_of(rank);
                if (layer.grad_bias != nullptr && row < layer.rows && Field::leads(rank)) {
                    layer.grad_bias[b * layer.grad_bias_stride + row * layer.bias_step] = grad_bias.at(rank, l);
                }
            });
            if (layer.grad_weight == nullptr) continue;
            if constexpr (kInRegisters) write_matrix(layer, b, l);
        }
    }

    // From the registers of the threads.
    FASTODE_HOST_DEVICE void write_matrix(const NetLayer<T>& layer, int64_t b, int l) {
        if constexpr (kInRegisters) {
            T* through = field.matrix;
            group.sync();
            group.each([&](int rank) {
                const int row = Field::row_of(rank), part = Field::part_of(rank);
                FASTODE_UNROLL
                for (int i = 0; i < kCols; ++i) {
                    const int c = Field::column(part, i / kPack) + i % kPack;
                    through[row * Field::kPitch + c] = layer.alpha * grad_rows.at(rank, l * kCols + i);
                }
            });
            group.sync();
            group.each([&](int rank) {
                const bool turned = layer.row_stride < layer.col_stride;
                T* grad = layer.grad_weight + b * layer.grad_weight_stride;
                for (int i = rank; i < kDim * kDim; i += Group::kSize) {
                    const int slow = i / kDim, fast = i % kDim;
                    const int r = turned ? fast : slow, c = turned ? slow : fast;
                    if (r < layer.rows && c < layer.cols) {
                        grad[r * layer.row_stride + c * layer.col_stride] = through[r * Field::kPitch + c];
                    }
                }
            });
            group.sync();
        }
    }
};

}  // namespace fastode
