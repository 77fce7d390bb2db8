#include "network.h"

#include <algorithm>
#include <string>
#include <utility>

#include "heads7.cuh"

namespace rwkv::cuda {
namespace {

const char* const kDoing = "computing";

}  // namespace

Activations Network::activations(Arena& arena, int channels, int tokens) const {
    const int tiles = tiles_of(channels);
    const std::size_t size =
        static_cast<std::size_t>(divide_up(tokens, kTokens)) * tiles * kWarp * kTokens;
    return {arena.take<std::uint16_t>(size), tiles};
}

void Network::load(Loader& loader, Arena& arena, const ModelWeights& weights, int outputs) {
    if (!spec_.normed) ln0_ = loader.norm(weights.ln0);
    ln_out_ = loader.norm(weights.ln_out);
    head_ = loader.matrix(weights.head);
    load_layers(loader, weights);
    x_ = floats(arena, spec_.width);
    other_ = floats(arena, spec_.width);
    normal_ = floats(arena, spec_.width);
    hidden_ = floats(arena, spec_.hidden);
    parts_ = floats(arena, spec_.width * static_cast<std::size_t>(value_parts(static_cast<int>(spec_.hidden))));
    for (Activations& mixed : mixed_) mixed = activations(arena, width_);
    last_ = activations(arena, width_, outputs);
    logits_ = arena.take<float>(static_cast<std::size_t>(outputs) * spec_.vocabulary);
    reserve(arena);
}

void Network::run(const Batch& batch, const float* embeddings, const float* looked_up,
                  cudaStream_t stream) {
    looked_up_ = looked_up;
    batch_ = batch;
    stream_ = stream;
    added_ = {};
    check(embed(embeddings, ln0_, batch.tokens, width_, x_, stream), kDoing);
    for (int layer = 0; layer < static_cast<int>(spec_.layers); ++layer) {
        time_mix(layer);
        channel_mix(layer);
    }
    if (batch.output_count == 0) return;
    check(normalize_outputs(batch, x_, added_, ln_out_, width_, last_, stream), kDoing);
    batch_.tokens = batch.output_count;
    multiply_all({product(head_, last_, logits_)});
}

Shift Network::shift_into_mixed(std::initializer_list<const float*> mixes, std::size_t offset) const {
    Shift shift{};
    for (const float* mix : mixes) {
        shift.mixes[shift.count] = mix;
        shift.out[shift.count] = mixed_[shift.count];
        ++shift.count;
    }
    shift.keep = true;
    shift.offset = offset;
    return shift;
}

void Network::shift(const NormVectors& norm, std::initializer_list<const float*> mixes, std::size_t offset,
                    bool keep) {
    Shift shift = shift_into_mixed(mixes, offset);
    shift.keep = keep;
    check(normalize_and_shift(batch_, x_, added_, norm, shift, width_, other_, normal_, stream_), kDoing);
    std::swap(x_, other_);
    added_ = {};
}

void Network::shift_again(std::initializer_list<const float*> mixes, const float* shares,
                          std::size_t offset) {
    Shift shift = shift_into_mixed(mixes, offset);
    shift.shares = shares;
    check(shift_normal(batch_, normal_, shift, width_, stream_), kDoing);
}

Product Network::product(const DeviceMatrix& matrix, const Activations& x, float* y, Finish finish) const {
    return {matrix.weights, matrix.scales, matrix.pairs, matrix.rows, matrix.tiles, matrix.groups, x, y, matrix.rows, {},
            finish};
}

Product Network::product(const DeviceMatrix& matrix, const Activations& x, const Activations& y,
                         Finish finish) const {
    return {matrix.weights, matrix.scales, matrix.pairs, matrix.rows, matrix.tiles, matrix.groups, x, nullptr, 0, y,
            finish};
}

void Network::multiply_all(std::initializer_list<Product> products) {
    Products all{};
    std::copy(products.begin(), products.end(), all.each);
    all.count = static_cast<int>(products.size());
    all.tokens = batch_.tokens;
    check(multiply(all, stream_), kDoing);
}

void Network::add_hidden(const Value& value, const float* gate) {
    check(sum_rows(value, hidden_, batch_.tokens, parts_, stream_), kDoing);
    added_ = {parts_, value_parts(value.hidden), gate};
}

void check_heads(const Spec& spec) {
    if (has_heads_of(spec.head_size)) return;
    refuse("There are GPU kernels for heads of 16, 32, 64 and 128 channels, not of " +
           std::to_string(spec.head_size) + ".");
}

std::unique_ptr<Network> make_network(const Spec& spec) {
    switch (spec.generation) {
        case Generation::v4: return make_network4(spec);
        case Generation::v5_0:
        case Generation::v5_1:
        case Generation::v5_2: return make_network5(spec);
        case Generation::v6: return make_network6(spec);
        case Generation::v7:
        case Generation::v7a: return make_network7(spec);
    }
    refuse("There are no GPU kernels for this generation of RWKV.");
}

}  // namespace rwkv::cuda
