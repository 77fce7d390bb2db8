#include "rwkv/loading.h"

#include <cstring>
#include <stdexcept>

namespace rwkv {
namespace {

constexpr std::size_t kMaxLayers = 4096;
constexpr std::size_t kMaxWidth = 1 << 20;
constexpr std::size_t kMaxVocabulary = 1 << 24;
constexpr std::size_t kMaxElements = std::size_t{1} << 40;

void check_size(const char* name, std::size_t value, std::size_t least, std::size_t most) {
    if (value >= least && value <= most) return;
    throw std::invalid_argument("The model's " + std::string(name) + " must lie between " +
                                std::to_string(least) + " and " + std::to_string(most) + ", not " +
                                std::to_string(value) + ".");
}

std::string describe(const std::vector<std::size_t>& shape) {
    std::string text = "[";
    for (const std::size_t size : shape) {
        if (text.size() > 1) text += ", ";
        text += std::to_string(size);
    }
    return text + "]";
}

class Reader {
public:
    explicit Reader(const std::map<std::string, Tensor>& tensors) : tensors_(tensors) {}

    Matrix matrix(const std::string& name, std::size_t rows, std::size_t columns) const {
        const Tensor& tensor = find(name, {rows, columns});
        return {tensor.data, rows, columns, tensor.weights};
    }

    Vector vector(const std::string& name, const std::vector<std::size_t>& shape) const {
        const Tensor& tensor = find(name, shape);
        if (tensor.weights != Weights::f32) {
            throw std::invalid_argument("Tensor " + name + " must be float32.");
        }
        std::size_t size = 1;
        for (const std::size_t n : shape) size *= n;
        Vector values(size);
        std::memcpy(values.data(), tensor.data, size * sizeof(float));
        return values;
    }

private:
    const Tensor& find(const std::string& name, const std::vector<std::size_t>& shape) const {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) {
            throw std::invalid_argument("The model has no tensor " + name + ".");
        }
        if (found->second.shape != shape) {
            throw std::invalid_argument("Tensor " + name + " has the shape " +
                                        describe(found->second.shape) + " and must have " +
                                        describe(shape) + ".");
        }
        return found->second;
    }

    const std::map<std::string, Tensor>& tensors_;
};

Layer load_layer(const Spec& spec, const Reader& read, std::size_t index) {
    const std::string block = "blocks." + std::to_string(index) + ".";
    const std::string att = block + "att.";
    const std::string ffn = block + "ffn.";
    const std::size_t d = spec.width;
    const auto vector = [&](const std::string& name) { return read.vector(name, {d}); };
    Layer layer{};
    layer.ln1_weight = vector(block + "ln1.weight");
    layer.ln1_bias = vector(block + "ln1.bias");
    layer.ln2_weight = vector(block + "ln2.weight");
    layer.ln2_bias = vector(block + "ln2.bias");
    layer.x_r = vector(att + "x_r");
    layer.x_w = vector(att + "x_w");
    layer.x_k = vector(att + "x_k");
    layer.x_v = vector(att + "x_v");
    layer.x_a = vector(att + "x_a");
    layer.x_g = vector(att + "x_g");
    layer.w0 = vector(att + "w0");
    layer.a0 = vector(att + "a0");
    layer.k_k = vector(att + "k_k");
    layer.k_a = vector(att + "k_a");
    layer.r_k = read.vector(att + "r_k", {spec.heads(), spec.head_size});
    layer.ln_x_weight = vector(att + "ln_x.weight");
    layer.ln_x_bias = vector(att + "ln_x.bias");
    layer.receptance = read.matrix(att + "receptance.weight", d, d);
    layer.key = read.matrix(att + "key.weight", d, d);
    layer.value = read.matrix(att + "value.weight", d, d);
    layer.output = read.matrix(att + "output.weight", d, d);
    layer.w1 = read.matrix(att + "w1", spec.rank_w, d);
    layer.w2 = read.matrix(att + "w2", d, spec.rank_w);
    layer.a1 = read.matrix(att + "a1", spec.rank_a, d);
    layer.a2 = read.matrix(att + "a2", d, spec.rank_a);
    layer.g1 = read.matrix(att + "g1", spec.rank_g, d);
    layer.g2 = read.matrix(att + "g2", d, spec.rank_g);
    if (index > 0) {
        layer.v0 = vector(att + "v0");
        layer.v1 = read.matrix(att + "v1", spec.rank_v, d);
        layer.v2 = read.matrix(att + "v2", d, spec.rank_v);
    }
    layer.ffn_x_k = vector(ffn + "x_k");
    layer.ffn_key = read.matrix(ffn + "key.weight", spec.hidden, d);
    layer.ffn_value = read.matrix(ffn + "value.weight", spec.hidden, d);
    return layer;
}

}  // namespace

void check_spec(const Spec& spec) {
    check_size("n_layer", spec.layers, 1, kMaxLayers);
    check_size("n_embd", spec.width, 1, kMaxWidth);
    check_size("vocab_size", spec.vocabulary, 1, kMaxVocabulary);
    check_size("head_size", spec.head_size, 1, spec.width);
    check_size("n_ffn", spec.hidden, 1, 8 * kMaxWidth);
    check_size("rank_w", spec.rank_w, 1, kMaxWidth);
    check_size("rank_a", spec.rank_a, 1, kMaxWidth);
    check_size("rank_g", spec.rank_g, 1, kMaxWidth);
    check_size("rank_v", spec.rank_v, spec.layers == 1 ? 0 : 1, kMaxWidth);
    if (spec.width % spec.head_size != 0) {
        throw std::invalid_argument("The model's n_embd of " + std::to_string(spec.width) +
                                    " is no multiple of its head_size of " +
                                    std::to_string(spec.head_size) + ".");
    }
    check_size("state", spec.state(), 1, kMaxElements);
    if (!(spec.group_norm_eps > 0 && spec.group_norm_eps < 1)) {
        throw std::invalid_argument("The model's group_norm_eps must lie between 0 and 1.");
    }
}

ModelWeights load_weights(const Spec& spec, const std::map<std::string, Tensor>& tensors) {
    const Reader read(tensors);
    const std::vector<std::size_t> width{spec.width};
    ModelWeights weights{};
    weights.emb = read.matrix("emb.weight", spec.vocabulary, spec.width);
    weights.head = read.matrix("head.weight", spec.vocabulary, spec.width);
    weights.ln0_weight = read.vector("blocks.0.ln0.weight", width);
    weights.ln0_bias = read.vector("blocks.0.ln0.bias", width);
    weights.ln_out_weight = read.vector("ln_out.weight", width);
    weights.ln_out_bias = read.vector("ln_out.bias", width);
    for (std::size_t index = 0; index < spec.layers; ++index) {
        weights.layers.push_back(load_layer(spec, read, index));
    }
    return weights;
}

}  // namespace rwkv
