// What is written for lanes of any width, with those of AVX-512.

#include "lanes_avx512.h"
#include "operations.h"

namespace rwkv {
namespace isa = avx512;
}

#include "pointwise_lanes.h"
#include "rows_lanes.h"
#include "wkv4_lanes.h"
#include "wkv5_lanes.h"
#include "wkv7_lanes.h"
