// The device as the host sees it: failures, memory, and the order of its work.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

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

// Memory for many arrays: it is measured first, and then made by the same calls. Zeros at first. Every
// array is an allocation of its own, so that tools see who leaves it.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Null while measuring, and for nothing.
    template <typename T>
    T* take(std::size_t count) {
        return static_cast<T*>(take_bytes(count * sizeof(T)));
    }
    std::size_t measured() const { return measured_; }
    // From here on memory is made, with the help of `stream`, if what was measured and `more` bytes are
    // free.
    void make(cudaStream_t stream, std::size_t more = 0);

private:
    static constexpr std::size_t kAlignment = 512;

    void* take_bytes(std::size_t bytes);

    bool making_ = false;
    cudaStream_t stream_ = nullptr;
    std::size_t measured_ = 0;
    std::vector<void*> made_;
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
