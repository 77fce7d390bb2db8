// How fast this machine reads memory: the limit of decoding.
#pragma once

#include <cstddef>

#include "rwkv/kernels.h"

namespace rwkv {

// Bytes per second of the best of a few passes over 256 MiB, by a matrix product on `threads`
// threads. Takes about a tenth of a second. Throws std::bad_alloc.
double read_bandwidth(const Kernels& kernels, std::size_t threads);

}  // namespace rwkv
