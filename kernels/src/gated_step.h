// What the steps of RWKV-4, 5 and 6 share.
#pragma once

#include "step.h"

namespace rwkv {

class GatedStep : public Step {
protected:
    using Step::Step;

    void reserve(std::size_t rows) override;

    // The whole channel mix of layer `index`.
    void mix_channels(std::size_t index, const Norm& norm, const GatedChannelMix& ffn);
    // From r_, k_, v_ and gate_ to y_ for the channels of one head of RWKV-5 or 6. The decay of row t
    // begins at decay[t * decay_stride].
    void mix_head(std::size_t index, std::size_t head, const MatrixTimeMix& att, const float* decay,
                  std::size_t decay_stride);
    // x_ += y_ * output.
    void add_output(const Matrix& output);

    Vector r_, k_, v_, y_;  // [rows, A]
    Vector gate_;           // [rows, A] in the time mix, [rows, D] in the channel mix

private:
    Vector out_;  // [rows, D]
};

}  // namespace rwkv
