#include "rwkv/thread_pool.h"

#include <exception>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "elements.h"

namespace rwkv {
namespace {

constexpr int kSpins = 2000;
constexpr std::uint64_t kPart = 0xFFFFFF;
constexpr std::size_t kExpectedBytes = 8192;

void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

std::uint64_t begin_of(std::uint64_t left) { return left & kPart; }
std::uint64_t end_of(std::uint64_t left) { return (left >> 24) & kPart; }

// Claims an item of a range, its first or its last.
bool take(std::atomic<std::uint64_t>& range, bool first, std::size_t& item) {
    std::uint64_t left = range.load(std::memory_order_acquire);
    std::uint64_t less = 0;
    do {
        if (begin_of(left) >= end_of(left)) return false;
        less = first ? left + 1 : left - (kPart + 1);
    } while (!range.compare_exchange_weak(left, less, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
    item = first ? begin_of(left) : end_of(less);
    return true;
}

}  // namespace

ThreadPool::ThreadPool(std::size_t threads) : shares_(new Share[threads]) {
    workers_.reserve(threads);  // afterwards only the start of a thread can fail
    try {
        for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
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

bool ThreadPool::claim(std::size_t thread, std::size_t& item) {
    if (take(shares_[thread].left, true, item)) return true;
    for (std::size_t other = size() - 1; other > 0; --other) {
        if (take(shares_[(thread + other) % size()].left, false, item)) return true;
    }
    return false;
}

// Does items until there are none.
void ThreadPool::work(std::size_t thread) {
    std::size_t done = 0;
    for (std::size_t item = 0; claim(thread, item); ++done) call_(context_, item);
    if (done > 0) {
        const std::size_t count = count_;  // until the items are counted the loop remains
        if (finished_.fetch_add(done) + done == count && caller_sleeps_.load()) {
            const std::lock_guard<std::mutex> lock(mutex_);
            wake_caller_.notify_one();
        }
    }
    if (const auto* expected = shares_[thread].expected.load(std::memory_order_relaxed)) {
        ask_for(expected, kExpectedBytes);
    }
}

void ThreadPool::run_shared(std::size_t count, Call call, const void* context) {
    call_ = call;
    context_ = context;
    count_ = count;
    finished_.store(0, std::memory_order_relaxed);
    const std::uint64_t loop = loop_.load(std::memory_order_relaxed) + 1;
    for (std::size_t thread = size(); thread-- > 0;) {
        const std::uint64_t begin = first_item(thread, count);
        const std::uint64_t end = first_item(thread + 1, count);
        shares_[thread].left.store(loop << 48 | end << 24 | begin, std::memory_order_release);
    }
    loop_.store(loop);
    if (sleepers_.load() > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_workers_.notify_all();
    }
    work(0);
    for (int spin = 0; spin < kSpins; ++spin) {
        if (finished_.load(std::memory_order_acquire) == count) return;
        pause_briefly();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    wake_caller_.wait(lock, [&] { return finished_.load() == count; });
    caller_sleeps_.store(false);
}

void ThreadPool::serve(std::size_t thread) {
    std::uint64_t seen = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
        bool found = false;
        for (int spin = 0; spin < kSpins && !found; ++spin) {
            found = loop_.load(std::memory_order_acquire) != seen;
            if (!found) pause_briefly();
        }
        if (!found) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleepers_.fetch_add(1);
            wake_workers_.wait(lock, [&] { return stopping_.load() || loop_.load() != seen; });
            sleepers_.fetch_sub(1);
        }
        seen = loop_.load();
        work(thread);
    }
}

}  // namespace rwkv
