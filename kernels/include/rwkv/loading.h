// From named tensors to the weights of a model, with everything verified.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rwkv/model.h"

namespace rwkv {

// Borrowed memory of one array, C-contiguous, at any address.
struct Tensor {
    const unsigned char* data;
    std::vector<std::size_t> shape;
    Weights weights;
};

// A spec without sizes of the generation of such a name as "5.2" or "5.2+normed". Throws
// std::invalid_argument with a sentence.
Spec parse_generation(const std::string& name);

// Throws std::invalid_argument with a sentence: a size that is no size of such a model.
void check_spec(const Spec& spec);

// Copies the vectors and borrows the matrices of `tensors`; `spec` has passed check_spec. A matrix in
// q8_rows has its scales in a float32 tensor of its name and ".scale", [rows, groups of a row].
// Throws std::invalid_argument with a sentence: a tensor is missing, or has another shape or type.
ModelWeights load_weights(const Spec& spec, const std::map<std::string, Tensor>& tensors);

}  // namespace rwkv
