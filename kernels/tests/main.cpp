// Runs every driver; meant to be built with the sanitizers. Exits with 1 at the first failure.

#include <cstdio>

#include "check.h"
#include "rwkv/dispatch.h"

int main() {
    using namespace rwkv;
    for (const Kernels* kernels : available_kernels()) {
        test::test_operations(*kernels);
        std::printf("operations %s\n", kernels->name);
    }
    test::test_cores();
    test::test_pool();
    test::test_vocabulary();
    test::test_sampler();
    test::test_model();
    std::printf("all drivers passed\n");
    return 0;
}
