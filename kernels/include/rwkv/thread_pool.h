// Threads that share the items of one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace rwkv {

// Every thread has a range of the items, so that it reads memory in one run, and then takes items from
// the ends of the others' ranges: a thread that the system does not schedule delays nothing but the
// item that it has begun. Between loops the threads spin for some tens of microseconds, then sleep.
class ThreadPool {
public:
    // `threads` counts the caller, at least 1; there are fewer if the system refuses some.
    explicit ThreadPool(std::size_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    std::size_t size() const { return workers_.size() + 1; }

    // The first item of a thread's range.
    std::size_t first_item(std::size_t thread, std::size_t count) const {
        return count * thread / size();
    }

    // Where the thread will begin to read after the next loop: it asks for that memory as soon as the
    // loop leaves it nothing to do. Null for nothing.
    void expect(std::size_t thread, const unsigned char* memory) {
        shares_[thread].expected.store(memory, std::memory_order_relaxed);
    }

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

    struct alignas(64) Share {
        // What is left of the thread's range in the current loop: 16 bits that tell loops apart, 24
        // bits of its end, 24 bits of its beginning. An item is claimed by moving one of them; only a
        // claimed item may be read.
        std::atomic<std::uint64_t> left{0};
        std::atomic<const unsigned char*> expected{nullptr};
    };

    void run_shared(std::size_t count, Call call, const void* context);
    bool claim(std::size_t thread, std::size_t& item);
    void work(std::size_t thread);
    void serve(std::size_t thread);

    std::unique_ptr<Share[]> shares_;
    alignas(64) std::atomic<std::uint64_t> loop_{0};
    alignas(64) std::atomic<std::size_t> finished_{0};
    std::atomic<std::uint32_t> sleepers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    std::size_t count_ = 0;
    Call call_ = nullptr;
    const void* context_ = nullptr;
    std::mutex mutex_;
    std::condition_variable wake_workers_;
    std::condition_variable wake_caller_;
    std::vector<std::thread> workers_;
};

}  // namespace rwkv
