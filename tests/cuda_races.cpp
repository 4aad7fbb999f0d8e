// The kernels of whole solves with a system thread for each thread of a group, for a data race detector: what the
// ordinary host groups, which run one thread after another between two waits, cannot show is a wait that is missing.
#include <pthread.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/net_adjoint.h"
#include "cuda/net_forward.h"

using namespace fastode;

thread_local int own_rank = 0;

// As on the device: what is not shared is each thread's own, sums are made of what all threads bring.
template <int kThreads>
struct ThreadGroup {
    static constexpr int kSize = kThreads;
    pthread_barrier_t* barrier;
    pthread_barrier_t* rows;  // one for each warp
    double* sums;

    template <class T, int kCount>
    struct Local {
        T value[kCount];
        T& at(int, int i) { return value[i]; }
    };

    template <class F>
    void each(F&& f) const {
        f(own_rank);
    }
    template <class F>
    void once(F&& f) const {
        if (own_rank == 0) f();
    }
    void sync() const { pthread_barrier_wait(barrier); }
    void sync_neighbours() const { pthread_barrier_wait(rows + own_rank / kWarp); }

    template <class F>
    double sum(F&& f) const {
        sums[own_rank] = f(own_rank);
        sync();
        const HostGroup<kThreads> same;
        const double total = same.sum([&](int rank) { return sums[rank]; });
        sync();
        return total;
    }

    template <int kLanes, class T>
    void sum_neighbours(Local<T, 1>& values) const {
        for (int distance = kLanes / 2; distance > 0; distance /= 2) {
            // Not a wait of the device: a shuffle hands over registers and orders no memory. One of a warp is enough
            // here, as all of a warp shuffle together.
            sums[own_rank] = static_cast<double>(values.at(0, 0));
            sync_neighbours();
            const T other = static_cast<T>(sums[own_rank ^ distance]);
            sync_neighbours();
            values.at(0, 0) += other;
        }
    }
};

template <class Shape, class T>
int check(int batch, int width) {
    constexpr int kThreads = Shape::kThreads, kLayers = Shape::kLayers;
    const int leaf = kLayers * (width * width + width), n_times = 4;
    std::vector<T> weights(batch * leaf), y0(batch * width), tolerance(width, T(1e-4)),
        grad_ys(n_times * batch * width);
    unsigned state = 7;
    const auto random = [&state] {
        return static_cast<T>((state = state * 1664525U + 1013904223U) >> 8) / T(1 << 24) - T(0.5);
    };
    for (auto* values : {&weights, &y0, &grad_ys}) {
        for (T& value : *values) value = random();
    }
    const double times[n_times] = {0.0, 0.3, 1.1, 2.0};
    NetSolve<T> solve{};
    solve.batch = batch;
    solve.n_times = n_times;
    solve.max_steps = 1000;
    solve.width = width;
    solve.layers = kLayers;
    solve.times = times;
    solve.time_row_stride = 1;
    solve.y0 = y0.data();
    solve.rtol = solve.atol = tolerance.data();
    solve.recorded = true;
    solve.control = {0.5, 0.5, 0.0, 0.0, 0.9, 0.2, 10.0, 0.0, 1e9, 1e-10, 1e-8, 16.0};
    NetMethod<T>& method = solve.method;  // Heun's with Euler's as estimate, and cubic Hermite output
    method.s = 3;
    method.degree = 3;
    method.adaptive = true;
    method.a[0] = T(1);
    method.a[1] = method.a[2] = T(0.5);
    method.b[0] = method.b[1] = T(0.5);
    method.e[0] = T(0.5);
    method.e[1] = T(-0.5);
    const double q[3][3] = {{1.0 / 3, 1.0 / 2, 1.0 / 2}, {0.0, 0.5, 0.5}, {0.0, -1.0 / 3, 0.0}};
    for (int i = 0; i < 3; ++i) {
        for (int m = 0; m < 3; ++m) method.q[i][m] = q[i][m];
    }
    const int every = 3, pages = 100 * batch;
    std::vector<T> grads[2];
    std::vector<T> outputs[2];
    for (int run = 0; run < 2; ++run) {
        std::vector<T> ys(n_times * batch * width), grad_weights(batch * leaf), grad_y0(batch * width),
            rest(batch * width);
        std::vector<double> real(kNetReals * batch), table(pages * 2 * every * 3);
        std::vector<T> states(pages * 2 * width), scratch(every * width);
        std::vector<int64_t> whole(kNetWholes * batch), before(pages), last(batch);
        int64_t taken = batch;
        solve.ys = ys.data();
        solve.y = rest.data();
        solve.real = real.data();
        solve.whole = whole.data();
        solve.pages = {};
        solve.pages.n_chunks = 1;
        solve.pages.per_page = 2;
        solve.pages.every = every;
        solve.pages.first[1] = pages;
        solve.pages.table[0] = table.data();
        solve.pages.states[0] = states.data();
        solve.pages.before[0] = before.data();
        solve.pages.taken = &taken;
        solve.pages.last = last.data();
        for (int l = 0; l < kLayers; ++l) {
            T* at = weights.data() + l * (width * width + width);
            T* grad = grad_weights.data() + l * (width * width + width);
            solve.layer[l] = {width, width, Activation::tanh,     T(1), at,  leaf, width, 1, at + width * width, leaf,
                              1,     grad,  grad + width * width, leaf, leaf};
        }
        NetAdjoint<T> adjoint{};
        adjoint.batch = batch;
        adjoint.n_times = n_times;
        adjoint.width = width;
        adjoint.layers = kLayers;
        adjoint.times = times;
        adjoint.time_row_stride = 1;
        adjoint.whole = whole.data();
        adjoint.grad_ys = grad_ys.data();
        adjoint.grad_y0 = grad_y0.data();
        adjoint.scratch = scratch.data();
        adjoint.method = method;
        adjoint.pages = solve.pages;
        for (int l = 0; l < kLayers; ++l) adjoint.layer[l] = solve.layer[l];
        const int count = larger(Shape::forward_shared(3), Shape::adjoint_shared(3));
        std::unique_ptr<double[]> memory(new double[count]);
        T* shared = reinterpret_cast<T*>(memory.get());
        int64_t slot = 0;
        if (run == 0) {
            using Group = HostGroup<kThreads>;
            const Group group;
            auto forward = std::make_unique<NetForward<Shape, T, Group>>(group, solve, shared, &slot);
            for (int b = 0; b < batch; ++b) forward->run(b, false);
            auto backward = std::make_unique<NetBackward<Shape, T, Group>>(group, adjoint, shared);
            for (int b = 0; b < batch; ++b) backward->run(b, scratch.data());
        } else {
            using Group = ThreadGroup<kThreads>;
            pthread_barrier_t barrier, rows[kThreads / kWarp];
            pthread_barrier_init(&barrier, nullptr, kThreads);
            for (auto& row : rows) pthread_barrier_init(&row, nullptr, kWarp);
            std::vector<double> sums(kThreads);
            const Group group{&barrier, rows, sums.data()};
            std::vector<std::thread> threads;
            for (int rank = 0; rank < kThreads; ++rank) {
                threads.emplace_back([&, rank] {
                    own_rank = rank;
                    NetForward<Shape, T, Group> forward(group, solve, shared, &slot);
                    for (int b = 0; b < batch; ++b) forward.run(b, false);
                    group.sync();  // between two launches
                    NetBackward<Shape, T, Group> backward(group, adjoint, shared);
                    for (int b = 0; b < batch; ++b) backward.run(b, scratch.data());
                });
            }
            for (auto& thread : threads) thread.join();
        }
        for (int b = 0; b < batch; ++b) {
            if (whole[kNetStatus * batch + b] != 0 || whole[kNetAccepted * batch + b] < 8) {
                std::printf("sample %d: status %d after %d steps\n", b, static_cast<int>(whole[b]),
                            static_cast<int>(whole[kNetAccepted * batch + b]));
                return 1;
            }
        }
        outputs[run] = ys;
        grads[run] = grad_weights;
        grads[run].insert(grads[run].end(), grad_y0.begin(), grad_y0.end());
    }
    const bool same = std::memcmp(outputs[0].data(), outputs[1].data(), outputs[0].size() * sizeof(T)) == 0 &&
                      std::memcmp(grads[0].data(), grads[1].data(), grads[0].size() * sizeof(T)) == 0;
    std::printf("%d threads, width %d, %d layers: %s\n", kThreads, width, kLayers, same ? "same bits" : "OTHER BITS");
    return same ? 0 : 1;
}

int main() {
    return check<NetShape<float, 16, 1>, float>(2, 13) + check<NetShape<float, 8, 2>, float>(2, 7) +
           check<NetShape<double, 32, 1>, double>(1, 30) + check<NetShape<float, 32, 2>, float>(1, 32) +
           check<NetWideShape<float, 32, 2>, float>(2, 29) + check<NetWideShape<double, 64, 1>, double>(1, 64);
}
