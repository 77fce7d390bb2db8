#include "rwkv/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "operations.h"

#define RWKV_TABLE(isa, newest)                                                             \
    {#newest,              newest::round,   newest::matmul,   newest::sum_rows,             \
     newest::sum_all_rows, isa::layer_norm, isa::token_shift, isa::sigmoid,                 \
     isa::decay6,          isa::decay7,     isa::wkv4,        isa::wkv5,                    \
     isa::wkv7,            isa::largest,    isa::weigh,       isa::mass_from,               \
     isa::keep_between}

namespace rwkv {

#if defined(__aarch64__)
namespace {

// Whether this CPU has the instructions SDOT and UDOT.
bool has_dot_products() {
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#elif defined(__APPLE__)
    int has = 0;
    std::size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}

}  // namespace
#endif

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> available = [] {
        static const Kernels scalar = RWKV_TABLE(scalar, scalar);
        std::vector<const Kernels*> found{&scalar};
#if defined(__x86_64__)
        static const Kernels avx2 = RWKV_TABLE(avx2, avx2);
        static const Kernels avx512 = RWKV_TABLE(avx512, avx512);
        static const Kernels avx512vnni = RWKV_TABLE(avx512, avx512vnni);
        __builtin_cpu_init();
        const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        if (has_avx2) found.push_back(&avx2);
        if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            found.push_back(&avx512);
            if (__builtin_cpu_supports("avx512vnni")) {
                found.push_back(&avx512vnni);
#ifdef RWKV_HAS_AVX512BF16
                static const Kernels avx512bf16 = RWKV_TABLE(avx512, avx512bf16);
                if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512bf16);
#endif
            }
        }
#elif defined(__aarch64__)
        static const Kernels neon = RWKV_TABLE(neon, neon);
        static const Kernels neondot = [] {
            Kernels kernels = neon;
            kernels.name = "neondot";
            kernels.matmul = neondot::matmul;
            return kernels;
        }();
        found.push_back(&neon);
        if (has_dot_products()) found.push_back(&neondot);
#endif
        return found;
    }();
    return available;
}

const Kernels& choose_kernels(const std::string& isa) {
    std::string wanted = isa;
    std::string source;
    if (wanted.empty()) {
        if (const char* variable = std::getenv("RWKV_CHAT_ISA")) {
            wanted = variable;
            source = "RWKV_CHAT_ISA: ";
        }
    }
    if (wanted.empty()) return *available_kernels().back();
    std::string names;
    for (const Kernels* kernels : available_kernels()) {
        if (wanted == kernels->name) return *kernels;
        names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
    }
    throw std::invalid_argument(source + "There are no kernels named \"" + wanted +
                                "\" for this CPU; available: " + names + ".");
}

}  // namespace rwkv
