#include "rwkv/thread_pool.h"

#include <exception>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace rwkv {
namespace {

constexpr int kSpins = 2000;
constexpr std::uint64_t kPart = 0xFFFFFF;

void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

bool has_item(std::uint64_t ticket) { return (ticket & kPart) < ((ticket >> 24) & kPart); }

}  // namespace

ThreadPool::ThreadPool(std::size_t threads) {
    workers_.reserve(threads);  // afterwards only the start of a thread can fail
    try {
        for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (const std::exception&) {
        // The system refuses more threads, or their memory; those that started are enough.
    }
}

ThreadPool::~ThreadPool() {
    stopping_.store(true);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_workers_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

// Claims and does one item; false when there is none.
bool ThreadPool::work_on_item() {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
        if (!has_item(ticket)) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                            std::memory_order_acquire));
    call_(context_, ticket & kPart);
    const std::uint32_t count = (ticket >> 24) & kPart;
    if (finished_.fetch_add(1) + 1 == count && caller_sleeps_.load()) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_caller_.notify_one();
    }
    return true;
}

void ThreadPool::run_shared(std::size_t count, Call call, const void* context) {
    call_ = call;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    const std::uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 48) + 1;
    ticket_.store(loop << 48 | static_cast<std::uint64_t>(count) << 24);
    if (sleepers_.load() > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_workers_.notify_all();
    }
    while (work_on_item()) {
    }
    for (int spin = 0; spin < kSpins; ++spin) {
        if (finished_.load(std::memory_order_acquire) == count) return;
        pause_briefly();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    wake_caller_.wait(lock, [&] { return finished_.load() == count; });
    caller_sleeps_.store(false);
}

void ThreadPool::serve() {
    while (!stopping_.load(std::memory_order_relaxed)) {
        if (work_on_item()) continue;
        bool found = false;
        for (int spin = 0; spin < kSpins && !found; ++spin) {
            pause_briefly();
            found = has_item(ticket_.load(std::memory_order_relaxed));
        }
        if (found) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_workers_.wait(lock, [&] { return stopping_.load() || has_item(ticket_.load()); });
        sleepers_.fetch_sub(1);
    }
}

}  // namespace rwkv
