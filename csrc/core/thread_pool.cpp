#include "core/thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/interrupt.h"

namespace fastode {
namespace {

using Clock = std::chrono::steady_clock;

thread_local bool inside_parallel_body = false;

struct Job {
    Job(int64_t n, int helpers, ChunkBody f, void* c)
        : n_chunks(n), max_helpers(helpers), body(f), context(c), interrupt(Interrupt::current()) {}

    const int64_t n_chunks;
    const int max_helpers;  // workers that may join the caller
    const ChunkBody body;
    void* const context;
    Interrupt* const interrupt;
    std::atomic<int64_t> next{0};
    std::atomic<int> at_work{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;  // written by the thread that sets `failed`, read after all have left

    void work(int slot) noexcept {
        const Interrupt::Scope scope(interrupt);
        at_work.fetch_add(1, std::memory_order_acquire);
        const bool outer = inside_parallel_body;
        inside_parallel_body = true;
        while (!failed.load(std::memory_order_relaxed)) {
            const int64_t chunk = next.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= n_chunks) break;
            try {
                body(context, chunk, slot);
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
        inside_parallel_body = outer;
        at_work.fetch_sub(1, std::memory_order_release);
    }

    // The caller's wait for those that are still at work. It asks for signals meanwhile; these then end soon.
    void wait() noexcept {
        const auto begin = Clock::now();
        const bool outer = inside_parallel_body;
        inside_parallel_body = true;  // a handler of a signal may solve, too
        while (at_work.load(std::memory_order_acquire) > 0) {
            const Clock::duration waited = Clock::now() - begin;
            if (waited < std::chrono::microseconds(50)) continue;
            std::this_thread::sleep_for(std::min<Clock::duration>(waited / 16, std::chrono::milliseconds(5)));
            if (interrupt != nullptr) interrupt->stops();
        }
        inside_parallel_body = outer;
    }
};

class Pool {
public:
    explicit Pool(int n_workers) {
        // Signals are for Python's main thread, so the workers are started with all of them blocked.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (int i = 0; i < n_workers; ++i) workers_.emplace_back([this] { serve(); });
        } catch (const std::system_error&) {
            // The system has no more threads to give: work with those there are.
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void run(Job& job) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            ++generation_;
            joined_ = 0;
        }
        if (job.max_helpers < static_cast<int>(workers_.size())) {
            for (int i = 0; i < job.max_helpers; ++i) wake_.notify_one();
        } else {
            wake_.notify_all();
        }
        job.work(0);
        // All chunks are taken: a worker that has not woken yet need not, those at work are waited for.
        job.wait();
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;
        done_.wait(lock, [this] { return at_work_ == 0; });
    }

private:
    void serve() {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] {
                return stopping_ || (job_ != nullptr && generation_ != seen && joined_ < job_->max_helpers);
            });
            if (stopping_) return;
            seen = generation_;
            Job& job = *job_;
            const int slot = ++joined_;
            ++at_work_;
            lock.unlock();
            job.work(slot);
            lock.lock();
            if (--at_work_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    uint64_t generation_ = 0;
    int joined_ = 0;   // workers that have entered the current job
    int at_work_ = 0;  // of these, how many have not left it
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

// All of this is reached through a pointer that fork can replace, and is never destroyed: at exit a worker may still
// sleep in the condition variable.
struct State {
    std::mutex busy;  // held by the caller that uses the pool
    std::unique_ptr<Pool> pool;
    int pool_size = 0;  // threads, the caller included, that `pool` was made for

    void resize(int threads) {
        if (pool_size == threads) return;
        stop();
        pool = std::make_unique<Pool>(threads - 1);
        pool_size = threads;
    }
    void stop() {
        pool.reset();
        pool_size = 0;
    }
};

// The entry of an OpenMP runtime for a parallel region, if the process has one: f is run by up to n threads.
using ParallelRegion = void (*)(void (*f)(void*), void* data, unsigned n, unsigned flags);
ParallelRegion find_openmp() { return reinterpret_cast<ParallelRegion>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

struct Team {
    Job& job;
    const std::thread::id caller;
    std::atomic<int> members{0};
};
void join_team(void* data) {
    auto& team = *static_cast<Team*>(data);
    team.job.work(team.members.fetch_add(1, std::memory_order_relaxed));
    if (std::this_thread::get_id() == team.caller) team.job.wait();
}

std::atomic<bool> openmp_wanted{false};
std::atomic<bool> forked{false};  // threads of OpenMP did not come along
std::atomic<int> num_threads{1};
std::atomic<State*> current{nullptr};

State& state() {
    State* found = current.load(std::memory_order_acquire);
    if (found != nullptr) return *found;
    auto* fresh = new State;
    if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;
    return *found;
}

// In the child of a fork the workers do not exist and the locks are in whatever state they were: leave all that behind.
void forget_after_fork() {
    current.store(nullptr, std::memory_order_release);
    forked.store(true, std::memory_order_relaxed);
    inside_parallel_body = false;
}
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, forget_after_fork);

}  // namespace

void set_num_threads(int n) {
    if (n < 1 || n > 1024) {
        throw std::invalid_argument("the number of threads must be between 1 and 1024, got " + std::to_string(n));
    }
    num_threads.store(n, std::memory_order_relaxed);
}

bool share_openmp(bool wanted) {
    openmp_wanted.store(wanted, std::memory_order_relaxed);
    return wanted && !forked.load(std::memory_order_relaxed) && find_openmp() != nullptr;
}

int get_num_threads() noexcept { return num_threads.load(std::memory_order_relaxed); }

void stop_threads() {
    State& s = state();
    std::lock_guard<std::mutex> lock(s.busy);
    s.stop();
}

void run_chunks(int64_t n_chunks, int threads, ChunkBody body, void* context) {
    const int pool_size = get_num_threads();
    const int64_t helpers = std::min<int64_t>(n_chunks, std::min(threads, pool_size)) - 1;
    Job job(n_chunks, static_cast<int>(helpers), body, context);
    if (helpers < 1 || inside_parallel_body) {
        job.work(0);
    } else {
        State& s = state();
        std::unique_lock<std::mutex> lock(s.busy, std::try_to_lock);
        static const ParallelRegion openmp = find_openmp();
        const bool shared = openmp_wanted.load(std::memory_order_relaxed) && !forked.load(std::memory_order_relaxed);
        if (lock.owns_lock() && shared && openmp != nullptr) {
            Team team{job, std::this_thread::get_id()};
            openmp(join_team, &team, static_cast<unsigned>(helpers + 1), 0);
        } else if (lock.owns_lock()) {
            s.resize(pool_size);
            s.pool->run(job);
        } else {
            job.work(0);
        }
    }
    // Asked by the caller while it waited: then nobody threw.
    if (!job.error && job.interrupt != nullptr && job.interrupt->stopped()) throw Interrupted();
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastode
