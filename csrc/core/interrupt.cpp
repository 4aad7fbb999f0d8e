#include "core/interrupt.h"

namespace fastode {
namespace {

constexpr std::chrono::milliseconds kBetween{100};  // asking may wait 5 ms for other threads of Python

}  // namespace

thread_local Interrupt* Interrupt::current_ = nullptr;

Interrupt::Interrupt(Ask ask, void* context) noexcept
    : ask_(ask),
      context_(context),
      caller_(std::this_thread::get_id()),
      next_(Clock::now() + kBetween),
      before_(current_) {
    current_ = this;
}

Interrupt::~Interrupt() { current_ = before_; }

bool Interrupt::stops() noexcept {
    if (stopped()) return true;
    if (std::this_thread::get_id() != caller_ || Clock::now() < next_) return false;
    const bool stop = ask_(context_);
    stop_.store(stop, std::memory_order_relaxed);
    next_ = Clock::now() + kBetween;
    return stop;
}

}  // namespace fastode
