#include "rwkv/model.h"

#include <algorithm>

namespace rwkv {

std::vector<float> Spec::new_state() const {
    std::vector<float> start(state());
    if (generation == Generation::v4) {
        // Less than the exponent of any token.
        const std::size_t exponent = width + 2 * att_width;
        for (std::size_t layer = 0; layer < layers; ++layer) {
            std::fill_n(start.begin() + layer * layer_state() + exponent, att_width, -1e30f);
        }
    }
    return start;
}

}  // namespace rwkv
