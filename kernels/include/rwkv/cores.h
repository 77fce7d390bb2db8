// How many threads are worth starting.
#pragma once

#include <cstddef>
#include <string>

namespace rwkv {

// The number of physical cores that this process may use, and not more than the CPU quota of its
// control group, rounded up; at least 1. `cgroups` is where control groups are mounted.
std::size_t count_cores(const std::string& cgroups = "/sys/fs/cgroup");

}  // namespace rwkv
