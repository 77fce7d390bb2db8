// What is written for lanes of any width, with those of NEON.

#include "lanes_neon.h"
#include "operations.h"

namespace rwkv {
namespace isa = neon;
}

#include "matmul_lanes.h"
#include "pointwise_lanes.h"
#include "rows_lanes.h"
#include "sampling_lanes.h"
#include "wkv4_lanes.h"
#include "wkv5_lanes.h"
#include "wkv7_lanes.h"
