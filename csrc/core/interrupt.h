// Ctrl-C during a long call from Python: the thread that made the call asks for signals now and then, all others at
// work for it stop when it was told to.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <thread>

namespace fastode {

// Thrown out of a call that is to end early.
struct Interrupted : std::exception {
    const char* what() const noexcept override { return "interrupted"; }
};

// Of one call. While it exists it is the one that `look` of this thread, and of those that take part in its parallel
// calls, is about.
class Interrupt {
public:
    // ask: whether to stop; called by the constructing thread at most every 100 ms, and not in the first.
    using Ask = bool (*)(void* context);
    Interrupt(Ask ask, void* context) noexcept;
    ~Interrupt();
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;

    // Whether the call is to end; asks, where it is time to.
    bool stops() noexcept;

    bool stopped() const noexcept { return stop_.load(std::memory_order_relaxed); }

    // To be called by loops about every millisecond. Throws Interrupted if the call is to end.
    static void look() {
        if (current_ != nullptr && current_->stops()) throw Interrupted();
    }

    // The one that this thread works for, null outside of calls that can be interrupted.
    static Interrupt* current() noexcept { return current_; }

    // A thread that takes part in a call.
    class Scope {
    public:
        explicit Scope(Interrupt* interrupt) noexcept : before_(current_) { current_ = interrupt; }
        ~Scope() { current_ = before_; }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        Interrupt* before_;
    };

private:
    using Clock = std::chrono::steady_clock;

    static thread_local Interrupt* current_;

    const Ask ask_;
    void* const context_;
    const std::thread::id caller_;
    std::atomic<bool> stop_{false};
    Clock::time_point next_;
    Interrupt* const before_;
};

// Counts pieces of work of about `ns` nanoseconds, and looks after about a millisecond of them.
class Looks {
public:
    explicit Looks(double ns) noexcept
        : every_(ns > 1e6   ? 1
                 : ns < 1e3 ? 1000
                            : static_cast<int64_t>(1e6 / ns)),
          left_(every_) {}
    void tick() {
        if (--left_ > 0) return;
        left_ = every_;
        Interrupt::look();
    }

private:
    int64_t every_, left_;
};

}  // namespace fastode
