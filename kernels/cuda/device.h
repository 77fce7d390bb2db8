// The device as the host sees it: failures, and one piece of memory cut into many.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace rwkv::cuda {

// A failure with one of the codes of api.h.
struct Failure {
    int code;
    std::string sentence;
};

// Throws Failure for a cudaError_t.
void check(int error, const char* doing);

[[noreturn]] void refuse(const std::string& sentence);

std::string gibibytes(std::uint64_t bytes);

// Memory for many arrays, as one allocation: it is measured first, then made, then handed out by the
// same calls. Zeros at first.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Null while measuring.
    template <typename T>
    T* take(std::size_t count) {
        const std::size_t at = used_;
        used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
        return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
    }
    std::size_t used() const { return used_; }
    // Makes what was measured, if that and `more` bytes are free.
    void make(cudaStream_t stream, std::size_t more = 0);

private:
    static constexpr std::size_t kAlignment = 256;

    unsigned char* base_ = nullptr;
    std::size_t used_ = 0;
};

// Memory of the host that the device reads and writes directly.
class Pinned {
public:
    Pinned() = default;
    ~Pinned();
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;

    void make(std::size_t bytes);
    unsigned char* get() const { return data_; }

private:
    unsigned char* data_ = nullptr;
};

class Stream {
public:
    Stream() = default;
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    void make();
    cudaStream_t get() const { return stream_; }
    void wait() const;

private:
    cudaStream_t stream_ = nullptr;
};

}  // namespace rwkv::cuda
