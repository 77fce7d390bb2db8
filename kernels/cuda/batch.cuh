// Which token of a call belongs to which state.
#pragma once

#include <cstddef>

namespace rwkv::cuda {

struct Row {
    int slot;   // of the state it belongs to
    int first;  // whether it is the first one of its run
    int last;   // and the last one
};

// Rows [first, first + count) follow one state, in order.
struct Run {
    int first, count, slot;
};

// Memory of the device.
struct Batch {
    const Row* rows;      // [tokens]
    const Run* runs;      // [run_count]
    const int* outputs;   // [output_count]: rows whose logits are wanted
    int tokens, run_count, output_count;
    float* states;        // [slots, state_size], as rwkv::Spec lays a state out
    size_t state_size;

    bool single() const { return run_count == tokens; }
};

}  // namespace rwkv::cuda
