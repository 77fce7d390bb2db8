// Which kernels this CPU can run.
#pragma once

#include <string>
#include <vector>

#include "rwkv/kernels.h"

namespace rwkv {

// Slowest first; the first is always "scalar".
const std::vector<const Kernels*>& available_kernels();

// The kernels named `isa`; "" means those that RWKV_CHAT_ISA names, or else the fastest.
// Throws std::invalid_argument with a sentence that lists what there is.
const Kernels& choose_kernels(const std::string& isa);

}  // namespace rwkv
