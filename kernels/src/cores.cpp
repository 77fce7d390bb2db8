#include "rwkv/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace rwkv {
namespace {

constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

// Cores among the CPUs that this process may run on; 0 where the system does not tell.
std::size_t count_allowed() {
    std::set<std::string> cores;
#if defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::ifstream siblings("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                               "/topology/thread_siblings_list");
        std::string line;
        // Without topology every CPU counts as a core.
        cores.insert(std::getline(siblings, line) ? line : "cpu" + std::to_string(cpu));
    }
#endif
    return cores.size();
}

// CPUs' worth of time that the control group grants, in its second or first version.
std::size_t read_quota(const std::string& cgroups) {
    double quota = 0;
    double period = 0;
    // Without a limit the quota is "max" or -1.
    if (!(std::ifstream(cgroups + "/cpu.max") >> quota >> period)) {
        std::ifstream(cgroups + "/cpu/cpu.cfs_quota_us") >> quota;
        std::ifstream(cgroups + "/cpu/cpu.cfs_period_us") >> period;
    }
    if (!(quota > 0 && period > 0)) return kUnlimited;
    return static_cast<std::size_t>(std::ceil(std::min(quota / period, 1e9)));
}

}  // namespace

std::size_t count_cores(const std::string& cgroups) {
    std::size_t cores = count_allowed();
    if (cores == 0) cores = std::max(1u, std::thread::hardware_concurrency());
    return std::min(cores, read_quota(cgroups));
}

}  // namespace rwkv
