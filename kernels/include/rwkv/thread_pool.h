// Threads that share the items of one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace rwkv {

// The caller of run() works too, and waits only for items that another thread has begun: a thread
// that the system does not schedule delays nothing. Between loops the threads spin for some tens of
// microseconds, then sleep.
class ThreadPool {
public:
    // `threads` counts the caller, at least 1; there are fewer if the system refuses some.
    explicit ThreadPool(std::size_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    std::size_t size() const { return workers_.size() + 1; }

    // Calls body(i) once for every i < count, in any order, on any thread; count is below 2^24.
    // `body` must not throw. One caller at a time.
    template <class Body>
    void run(std::size_t count, const Body& body) {
        if (count <= 1 || workers_.empty()) {
            for (std::size_t i = 0; i < count; ++i) body(i);
            return;
        }
        run_shared(count, [](const void* context, std::size_t item) {
            (*static_cast<const Body*>(context))(item);
        }, &body);
    }

private:
    using Call = void (*)(const void*, std::size_t);

    void run_shared(std::size_t count, Call call, const void* context);
    bool work_on_item();
    void serve();

    // What is left of the current loop: 16 bits that tell loops apart, 24 bits of count, 24 bits of
    // the next item. An item is claimed by raising the last part; only a claimed item may be read.
    alignas(64) std::atomic<std::uint64_t> ticket_{0};
    alignas(64) std::atomic<std::uint32_t> finished_{0};
    std::atomic<std::uint32_t> sleepers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    Call call_ = nullptr;
    const void* context_ = nullptr;
    std::mutex mutex_;
    std::condition_variable wake_workers_;
    std::condition_variable wake_caller_;
    std::vector<std::thread> workers_;
};

}  // namespace rwkv
