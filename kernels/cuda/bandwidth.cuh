// How fast a device reads its memory.
#pragma once

namespace rwkv::cuda {

// Bytes per second of the current device. Throws Failure.
double read_bandwidth();

}  // namespace rwkv::cuda
