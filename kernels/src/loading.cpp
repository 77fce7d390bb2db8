#include "rwkv/loading.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "elements.h"

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

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

class Reader {
public:
    explicit Reader(const std::map<std::string, Tensor>& tensors) : tensors_(tensors) {}

    Matrix matrix(const std::string& name, std::size_t rows, std::size_t columns) const {
        return stack(name, {rows, columns});
    }

    // One matrix below the other, as one.
    Matrix stack(const std::string& name, const std::vector<std::size_t>& shape) const {
        return read(name, shape, false);
    }

    // A matrix of which rows are summed or looked up.
    Matrix rows(const std::string& name, std::size_t rows, std::size_t columns) const {
        return read(name, {rows, columns}, true);
    }

    Vector vector(const std::string& name, const std::vector<std::size_t>& shape) const {
        const Tensor& tensor = floats(name, shape);
        Vector values(count(shape));
        std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
        return values;
    }

    Norm norm(const std::string& name, std::size_t size) const {
        return {vector(name + ".weight", {size}), vector(name + ".bias", {size})};
    }

private:
    static std::size_t count(const std::vector<std::size_t>& shape) {
        std::size_t size = 1;
        for (const std::size_t n : shape) size *= n;
        return size;
    }

    Matrix read(const std::string& name, const std::vector<std::size_t>& shape, bool by_row) const {
        const Tensor& tensor = find(name);
        const std::size_t columns = shape.back();
        Matrix matrix{tensor.data, count(shape) / columns, columns, tensor.weights};
        const bool tiled = tensor.weights == Weights::q8 || tensor.weights == Weights::q4;
        const bool packed_rows = tensor.weights == Weights::q8_rows || tensor.weights == Weights::q4_rows;
        if (by_row ? tiled : packed_rows) {
            throw std::invalid_argument("Tensor " + name + " has its weights in the other layout.");
        }
        switch (tensor.weights) {
            case Weights::q8:
                check_shape(name, tensor, {divide_up(matrix.rows, kTileRows), row_bytes_q8(columns),
                                           kTileRows});
                break;
            case Weights::q4:
                check_shape(name, tensor, {divide_up(matrix.rows, kTileRows),
                                           divide_up(columns, kGroupQ4), tile_bytes(kGroupQ4)});
                break;
            case Weights::q4_rows:
                check_shape(name, tensor, {matrix.rows, packed_bytes(columns)});
                break;
            default: check_shape(name, tensor, shape);
        }
        if (tensor.weights == Weights::q8_rows) {
            matrix.scales = floats(name + ".scale", {matrix.rows, groups_of(columns)}).data;
        }
        return matrix;
    }

    const Tensor& floats(const std::string& name, const std::vector<std::size_t>& shape) const {
        const Tensor& tensor = find(name);
        check_shape(name, tensor, shape);
        if (tensor.weights != Weights::f32) {
            throw std::invalid_argument("Tensor " + name + " must be float32.");
        }
        return tensor;
    }

    static void check_shape(const std::string& name, const Tensor& tensor,
                            const std::vector<std::size_t>& shape) {
        if (tensor.shape == shape) return;
        throw std::invalid_argument("Tensor " + name + " has the shape " + describe(tensor.shape) +
                                    " and must have " + describe(shape) + ".");
    }

    const Tensor& find(const std::string& name) const {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) {
            throw std::invalid_argument("The model has no tensor " + name + ".");
        }
        return found->second;
    }

    const std::map<std::string, Tensor>& tensors_;
};

// The sizes and the tensors of one layer.
struct Source {
    const Spec& spec;
    const Reader& read;
    std::size_t index;

    std::string block() const { return "blocks." + std::to_string(index) + "."; }
    Norm norm(const std::string& name) const { return read.norm(block() + name, spec.width); }
    Vector width(const std::string& name) const { return vector(name, {spec.width}); }
    Vector vector(const std::string& name, const std::vector<std::size_t>& shape) const {
        return read.vector(block() + name, shape);
    }
    Matrix matrix(const std::string& name, std::size_t rows, std::size_t columns) const {
        return read.matrix(block() + name, rows, columns);
    }
    Matrix rows(const std::string& name, std::size_t rows, std::size_t columns) const {
        return read.rows(block() + name, rows, columns);
    }
    // ffn.value, turned: a hidden channel is a row.
    Matrix value() const { return rows("ffn.value.weight", spec.hidden, spec.width); }
};

// RWKV-4 and 5 keep the share of the token itself.
Vector rest(Vector shares) {
    for (float& share : shares) share = 1 - share;
    return shares;
}

GatedChannelMix load_channel_mix(const Source& from, Vector mix_k, Vector mix_r) {
    const std::size_t d = from.spec.width;
    return {std::move(mix_k), std::move(mix_r), from.matrix("ffn.receptance.weight", d, d),
            from.matrix("ffn.key.weight", from.spec.hidden, d),
            from.value()};
}

MatrixTimeMix load_time_mix(const Source& from, Vector first) {
    const std::size_t d = from.spec.width;
    const std::size_t a = from.spec.att_width;
    MatrixTimeMix att{};
    att.receptance = from.matrix("att.receptance.weight", a, d);
    att.key = from.matrix("att.key.weight", a, d);
    att.value = from.matrix("att.value.weight", a, d);
    if (from.spec.generation != Generation::v5_0) att.gate = from.matrix("att.gate.weight", a, d);
    att.output = from.matrix("att.output.weight", d, a);
    att.first = std::move(first);
    att.ln_x = from.read.norm(from.block() + "att.ln_x", a);
    return att;
}

void load_layer(const Source& from, Layer4& layer) {
    const std::size_t d = from.spec.width;
    const std::size_t a = from.spec.att_width;
    layer.ln1 = from.norm("ln1");
    layer.ln2 = from.norm("ln2");
    layer.mix_k = rest(from.width("att.time_mix_k"));
    layer.mix_v = rest(from.width("att.time_mix_v"));
    layer.mix_r = rest(from.width("att.time_mix_r"));
    layer.decay = from.vector("att.time_decay", {a});
    for (float& decay : layer.decay) decay = static_cast<float>(-std::exp(double{decay}));
    layer.first = from.vector("att.time_first", {a});
    layer.receptance = from.matrix("att.receptance.weight", a, d);
    layer.key = from.matrix("att.key.weight", a, d);
    layer.value = from.matrix("att.value.weight", a, d);
    layer.output = from.matrix("att.output.weight", d, a);
    layer.ffn = load_channel_mix(from, rest(from.width("ffn.time_mix_k")),
                                 rest(from.width("ffn.time_mix_r")));
}

void load_layer(const Source& from, Layer5& layer) {
    const Spec& spec = from.spec;
    // [H, N] in RWKV-5.2, and before one number for all channels of a head.
    const auto by_channel = [&](const std::string& name) {
        if (spec.generation == Generation::v5_2) {
            return from.vector(name, {spec.heads(), spec.head_size});
        }
        Vector channels;
        for (const float value : from.vector(name, {spec.heads()})) {
            channels.insert(channels.end(), spec.head_size, value);
        }
        return channels;
    };
    layer.ln1 = from.norm("ln1");
    layer.ln2 = from.norm("ln2");
    layer.mix_k = rest(from.width("att.time_mix_k"));
    layer.mix_v = rest(from.width("att.time_mix_v"));
    layer.mix_r = rest(from.width("att.time_mix_r"));
    if (spec.generation != Generation::v5_0) layer.mix_g = rest(from.width("att.time_mix_g"));
    layer.decay = by_channel("att.time_decay");
    for (float& decay : layer.decay) decay = static_cast<float>(std::exp(-std::exp(double{decay})));
    layer.att = load_time_mix(from, by_channel("att.time_faaaa"));
    layer.ffn = load_channel_mix(from, rest(from.width("ffn.time_mix_k")),
                                 rest(from.width("ffn.time_mix_r")));
}

void load_layer(const Source& from, Layer6& layer) {
    const Spec& spec = from.spec;
    const std::size_t d = spec.width;
    const std::size_t a = spec.att_width;
    layer.ln1 = from.norm("ln1");
    layer.ln2 = from.norm("ln2");
    layer.mix_x = from.width("att.time_maa_x");
    layer.mix_w = from.width("att.time_maa_w");
    layer.mix_k = from.width("att.time_maa_k");
    layer.mix_v = from.width("att.time_maa_v");
    layer.mix_r = from.width("att.time_maa_r");
    layer.mix_g = from.width("att.time_maa_g");
    layer.mix_w1 = from.matrix("att.time_maa_w1", 5 * spec.rank_mix, d);
    layer.mix_w2 = from.read.stack(from.block() + "att.time_maa_w2", {5, d, spec.rank_mix});
    layer.decay = from.vector("att.time_decay", {a});
    layer.decay_w1 = from.matrix("att.time_decay_w1", spec.rank_w, d);
    layer.decay_w2 = from.matrix("att.time_decay_w2", a, spec.rank_w);
    layer.att = load_time_mix(
        from, from.vector("att.time_faaaa", {spec.heads(), spec.head_size}));
    layer.ffn = load_channel_mix(from, from.width("ffn.time_maa_k"), from.width("ffn.time_maa_r"));
}

DeepEmbed load_deep_embed(const Source& from) {
    constexpr std::size_t kSide = DeepEmbed::kSide;
    const Spec& spec = from.spec;
    return {from.rows("ffn.s_emb.weight", spec.vocabulary, kSide * kSide),
            from.matrix("ffn.s_emb_x.weight", kSide * kSide, spec.width),
            from.matrix("ffn.s1", kSide, spec.width), from.matrix("ffn.s2", spec.hidden, kSide),
            from.vector("ffn.s0", {spec.hidden})};
}

void load_layer(const Source& from, Layer7& layer) {
    const Spec& spec = from.spec;
    const std::size_t d = spec.width;
    layer.ln1 = from.norm("ln1");
    layer.ln2 = from.norm("ln2");
    layer.mix_r = from.width("att.x_r");
    layer.mix_w = from.width("att.x_w");
    layer.mix_k = from.width("att.x_k");
    layer.mix_v = from.width("att.x_v");
    layer.mix_a = from.width("att.x_a");
    layer.mix_g = from.width("att.x_g");
    layer.w0 = from.width("att.w0");
    layer.a0 = from.width("att.a0");
    layer.k_k = from.width("att.k_k");
    layer.k_a = from.width("att.k_a");
    layer.r_k = from.vector("att.r_k", {spec.heads(), spec.head_size});
    layer.ln_x = from.norm("att.ln_x");
    layer.receptance = from.matrix("att.receptance.weight", d, d);
    layer.key = from.matrix("att.key.weight", d, d);
    layer.value = from.matrix("att.value.weight", d, d);
    layer.output = from.matrix("att.output.weight", d, d);
    layer.w1 = from.matrix("att.w1", spec.rank_w, d);
    layer.w2 = from.matrix("att.w2", d, spec.rank_w);
    layer.a1 = from.matrix("att.a1", spec.rank_a, d);
    layer.a2 = from.matrix("att.a2", d, spec.rank_a);
    layer.g1 = from.matrix("att.g1", spec.rank_g, d);
    layer.g2 = from.matrix("att.g2", d, spec.rank_g);
    if (from.index > 0) {
        layer.v0 = from.width("att.v0");
        layer.v1 = from.matrix("att.v1", spec.rank_v, d);
        layer.v2 = from.matrix("att.v2", d, spec.rank_v);
    }
    layer.ffn_mix_k = from.width("ffn.x_k");
    layer.ffn_key = from.matrix("ffn.key.weight", spec.hidden, d);
    layer.ffn_value = from.value();
    if (spec.generation == Generation::v7a) layer.deep_embed = load_deep_embed(from);
}

template <class Layer>
Layers<Layer> load_layers(const Spec& spec, const Reader& read) {
    Layers<Layer> layers;
    for (std::size_t index = 0; index < spec.layers; ++index) {
        load_layer({spec, read, index}, layers.emplace_back());
    }
    return layers;
}

}  // namespace

Spec parse_generation(const std::string& name) {
    static const std::pair<const char*, Generation> known[] = {
        {"4", Generation::v4},     {"5.0", Generation::v5_0}, {"5.1", Generation::v5_1},
        {"5.2", Generation::v5_2}, {"6", Generation::v6},     {"7", Generation::v7},
        {"7a", Generation::v7a}};
    for (const auto& [text, generation] : known) {
        const bool normed = name == std::string(text) + "+normed";
        if (!normed && name != text) continue;
        Spec spec{};
        spec.generation = generation;
        spec.normed = normed;
        return spec;
    }
    throw std::invalid_argument("There are no kernels for a model of the generation \"" + name +
                                "\".");
}

void check_spec(const Spec& spec) {
    const bool is_7 = spec.generation == Generation::v7 || spec.generation == Generation::v7a;
    check_size("n_layer", spec.layers, 1, kMaxLayers);
    check_size("n_embd", spec.width, 1, kMaxWidth);
    check_size("n_att", spec.att_width, 1, kMaxWidth);
    check_size("vocab_size", spec.vocabulary, 1, kMaxVocabulary);
    check_size("n_ffn", spec.hidden, 1, 8 * kMaxWidth);
    if (spec.generation != Generation::v4) {
        check_size("head_size", spec.head_size, 1, spec.att_width);
        if (spec.att_width % spec.head_size != 0) {
            throw std::invalid_argument("The model's n_att of " + std::to_string(spec.att_width) +
                                        " is no multiple of its head_size of " +
                                        std::to_string(spec.head_size) + ".");
        }
        if (!(spec.group_norm_eps > 0 && spec.group_norm_eps < 1)) {
            throw std::invalid_argument("The model's group_norm_eps must lie between 0 and 1.");
        }
    }
    if (spec.generation == Generation::v6 || is_7) check_size("rank_w", spec.rank_w, 1, kMaxWidth);
    if (spec.generation == Generation::v6) check_size("rank_mix", spec.rank_mix, 1, kMaxWidth);
    if (is_7) {
        check_size("n_att", spec.att_width, spec.width, spec.width);
        check_size("rank_a", spec.rank_a, 1, kMaxWidth);
        check_size("rank_g", spec.rank_g, 1, kMaxWidth);
        check_size("rank_v", spec.rank_v, spec.layers == 1 ? 0 : 1, kMaxWidth);
    }
    check_size("state", spec.state(), 1, kMaxElements);
}

ModelWeights load_weights(const Spec& spec, const std::map<std::string, Tensor>& tensors) {
    const Reader read(tensors);
    ModelWeights weights{};
    weights.emb = read.rows("emb.weight", spec.vocabulary, spec.width);
    weights.head = read.matrix("head.weight", spec.vocabulary, spec.width);
    if (!spec.normed) weights.ln0 = read.norm("blocks.0.ln0", spec.width);
    weights.ln_out = read.norm("ln_out", spec.width);
    switch (spec.generation) {
        case Generation::v4: weights.layers = load_layers<Layer4>(spec, read); break;
        case Generation::v5_0:
        case Generation::v5_1:
        case Generation::v5_2: weights.layers = load_layers<Layer5>(spec, read); break;
        case Generation::v6: weights.layers = load_layers<Layer6>(spec, read); break;
        case Generation::v7:
        case Generation::v7a: weights.layers = load_layers<Layer7>(spec, read); break;
    }
    return weights;
}

}  // namespace rwkv
