// Random vocabularies, distributions, models and loops: nothing is read or written out of place,
// and what must hold holds.

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "check.h"
#include "rwkv/cores.h"
#include "rwkv/decoder.h"
#include "rwkv/dispatch.h"
#include "rwkv/loading.h"
#include "rwkv/sampler.h"
#include "rwkv/thread_pool.h"
#include "rwkv/vocabulary.h"

namespace rwkv::test {
namespace {

std::string random_text(Random& random, std::size_t most, std::size_t alphabet) {
    std::string text(random.below(most + 1), '\0');
    for (char& c : text) c = static_cast<char>(random.below(alphabet));
    return text;
}

// Tensors of a random model, each in a block of exactly its size.
struct RandomModel {
    RandomModel(Random& random, const Spec& named) {
        const Generation generation = named.generation;
        const bool is_4 = generation == Generation::v4;
        const bool is_7 = generation == Generation::v7 || generation == Generation::v7a;
        const std::size_t heads = random.between(1, 3);
        static const std::size_t sizes[] = {1, 4, 7, 16, 17};
        spec.generation = generation;
        spec.normed = named.normed;
        spec.layers = random.between(1, 3);
        spec.head_size = sizes[random.below(std::size(sizes))];
        spec.att_width = heads * spec.head_size;
        spec.width = is_7 ? spec.att_width : random.between(1, 40);
        spec.vocabulary = random.between(2, 90);
        spec.hidden = random.between(1, 70);
        spec.rank_w = random.between(1, 20);
        spec.rank_a = random.between(1, 20);
        spec.rank_v = random.between(1, 20);
        spec.rank_g = random.between(1, 20);
        spec.rank_mix = random.between(1, 20);
        spec.group_norm_eps = 64e-5f;
        const Weights weights = random.weights(false);
        const std::size_t d = spec.width;
        const std::size_t a = spec.att_width;
        const auto add = [&](const std::string& name, std::vector<std::size_t> shape, Weights kind) {
            const std::size_t rows = shape.size() == 2 ? shape[0] : 1;
            const std::size_t columns = shape.back();
            owned.emplace_back(random.floats(rows * columns), rows, columns, kind,
                               random.below(4));
            if (kind != Weights::f32 && kind != Weights::bf16) shape = owned.back().shape();
            tensors[name] = {owned.back().get().data, shape, kind};
            if (const unsigned char* scales = owned.back().scales()) {
                tensors[name + ".scale"] = {scales, {rows, groups_of(columns)}, Weights::f32};
            }
        };
        const auto vector = [&](const std::string& name) { add(name, {d}, Weights::f32); };
        const auto matrix = [&](const std::string& name, std::size_t rows, std::size_t columns) {
            add(name, {rows, columns}, weights);
        };
        const Weights by_row = weights == Weights::q8   ? Weights::q8_rows
                               : weights == Weights::q4 ? Weights::q4_rows
                                                        : weights;
        add("emb.weight", {spec.vocabulary, d}, by_row);
        matrix("head.weight", spec.vocabulary, d);
        for (const char* name : {"blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight",
                                 "ln_out.bias"}) {
            if (!spec.normed || std::strstr(name, "ln0") == nullptr) vector(name);
        }
        for (std::size_t i = 0; i < spec.layers; ++i) {
            const std::string block = "blocks." + std::to_string(i) + ".";
            const std::string att = block + "att.";
            const std::string ffn = block + "ffn.";
            for (const char* name : {"ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"}) {
                vector(block + name);
            }
            for (const char* name : {"receptance", "key", "value"}) matrix(att + name + ".weight", a, d);
            matrix(att + "output.weight", d, a);
            matrix(ffn + "key.weight", spec.hidden, d);
            add(ffn + "value.weight", {spec.hidden, d}, by_row);
            if (!is_4) {
                add(att + "ln_x.weight", {a}, Weights::f32);
                add(att + "ln_x.bias", {a}, Weights::f32);
            }
            if (is_7) {
                for (const char* name : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0",
                                         "k_k", "k_a"}) {
                    vector(att + name);
                }
                vector(ffn + "x_k");
                add(att + "r_k", {heads, spec.head_size}, Weights::f32);
                const std::pair<const char*, std::size_t> ranks[] = {
                    {"w", spec.rank_w}, {"a", spec.rank_a}, {"v", spec.rank_v}, {"g", spec.rank_g}};
                for (const auto& [name, rank] : ranks) {
                    matrix(att + name + "1", rank, d);
                    matrix(att + name + "2", d, rank);
                }
                if (generation == Generation::v7) continue;
                add(ffn + "s_emb.weight", {spec.vocabulary, 1024}, by_row);
                matrix(ffn + "s_emb_x.weight", 1024, d);
                add(ffn + "s0", {spec.hidden}, Weights::f32);
                matrix(ffn + "s1", 32, d);
                matrix(ffn + "s2", spec.hidden, 32);
                continue;
            }
            const bool has_gate = !is_4 && generation != Generation::v5_0;
            const bool by_head = generation == Generation::v5_0 || generation == Generation::v5_1;
            const std::string mix = generation == Generation::v6 ? "time_maa_" : "time_mix_";
            for (const char* name : {"k", "v", "r", "g", "x", "w"}) vector(att + mix + name);
            for (const char* name : {"k", "r"}) vector(ffn + mix + name);
            matrix(ffn + "receptance.weight", d, d);
            if (has_gate) matrix(att + "gate.weight", a, d);
            std::vector<std::size_t> shape{heads, spec.head_size};
            if (by_head) shape = {heads};
            add(att + "time_decay", is_4 || generation == Generation::v6 ? std::vector{a} : shape,
                Weights::f32);
            add(att + "time_first", {a}, Weights::f32);
            add(att + "time_faaaa", shape, Weights::f32);
            matrix(att + "time_maa_w1", 5 * spec.rank_mix, d);
            matrix(att + "time_maa_w2", 5 * d, spec.rank_mix);
            if (by_row == weights) tensors[att + "time_maa_w2"].shape = {5, d, spec.rank_mix};
            matrix(att + "time_decay_w1", spec.rank_w, d);
            matrix(att + "time_decay_w2", a, spec.rank_w);
        }
    }

    Spec spec{};
    std::vector<OwnedMatrix> owned;
    std::map<std::string, Tensor> tensors;
};

// A tensor too small for its place is refused before any of it is read.
void test_refusals(Random& random, const RandomModel& source) {
    const auto refused = [&](const std::map<std::string, Tensor>& tensors) {
        try {
            load_weights(source.spec, tensors);
            return false;
        } catch (const std::invalid_argument&) {
            return true;
        }
    };
    std::size_t needed = 0;
    for (const auto& [name, tensor] : source.tensors) {
        std::map<std::string, Tensor> others = source.tensors;
        others.erase(name);
        if (!refused(others)) continue;  // one of another generation
        ++needed;
        const std::size_t axis = random.below(tensor.shape.size());
        others[name] = {nullptr, tensor.shape, tensor.weights};
        others[name].shape[axis] += random.below(2) == 0 ? 1 : std::size_t{0} - 1;
        CHECK(refused(others), "%s of another shape is taken", name.c_str());
    }
    CHECK(needed > 15 * source.spec.layers, "only %zu tensors are needed", needed);
}

void test_steps(Random& random, const RandomModel& source) {
    std::vector<std::uint32_t> ids(random.between(1, 110));
    for (std::uint32_t& id : ids) id = static_cast<std::uint32_t>(random.below(source.spec.vocabulary));
    for (const Kernels* kernels : available_kernels()) {
        Model whole(source.spec, load_weights(source.spec, source.tensors), *kernels, 1);
        Model split(source.spec, load_weights(source.spec, source.tensors), *kernels, 3);
        std::vector<float> state = source.spec.new_state(), logits(source.spec.vocabulary);
        std::vector<float> split_state = state, split_logits = logits;
        whole.forward({{ids.data(), ids.size(), state.data(), logits.data()}});
        CHECK(all_finite(logits.data(), logits.size()), "%s: not finite", kernels->name);
        for (std::size_t start = 0; start < ids.size();) {
            const std::size_t count = random.between(1, ids.size() - start);
            split.forward({{&ids[start], count, split_state.data(), split_logits.data()}});
            start += count;
        }
        CHECK(state == split_state && logits == split_logits, "%s: the split matters", kernels->name);
    }
}

void test_decoder(Random& random, const RandomModel& source) {
    const Kernels& kernels = *available_kernels()[random.below(available_kernels().size())];
    Model model(source.spec, load_weights(source.spec, source.tensors), kernels, 2);
    std::vector<std::string> tokens(random.between(1, source.spec.vocabulary));
    for (std::size_t id = 1; id < tokens.size(); ++id) tokens[id] = random_text(random, 3, 3);
    const Vocabulary vocabulary(tokens);
    DecoderSettings settings{};
    settings.sampling = {random.below(3) * 0.7, random.uniform(0, 1), random.below(5),
                         random.uniform(0, 0.5)};
    settings.presence = random.uniform(-2, 2);
    settings.frequency = random.uniform(-2, 2);
    settings.decay = random.uniform(0, 1);
    settings.seed = random.bits();
    for (std::size_t i = random.below(4); i > 0; --i) {
        settings.stops.push_back("x" + random_text(random, 3, 3));
        settings.stops.back().erase(0, settings.stops.back().size() > 1 ? 1 : 0);
    }
    for (std::size_t i = random.below(4); i > 0; --i) {
        settings.exempt.push_back(static_cast<std::uint32_t>(random.below(source.spec.vocabulary)));
        settings.generated.push_back(static_cast<std::uint32_t>(random.below(source.spec.vocabulary)));
    }
    std::vector<float> logits = random.floats(source.spec.vocabulary);
    if (random.below(5) == 0) logits[0] = std::numeric_limits<float>::quiet_NaN();
    Decoder decoder(model, vocabulary, source.spec.new_state(), logits, settings);
    std::vector<std::uint32_t> ids;
    std::thread other([&] {
        std::this_thread::yield();
        if (settings.seed % 2 == 0) decoder.cancel();
        static_cast<void>(decoder.state());
    });
    const Ending ending = decoder.run(random.below(30), random.uniform(0, 0.1), ids);
    other.join();
    for (const std::uint32_t id : ids) CHECK(id < tokens.size() && !tokens[id].empty(), "id %u", id);
    if (ending == Ending::non_finite) CHECK(ids.empty() && std::isnan(logits[0]), "finite logits");
    if (ending == Ending::stop) CHECK(!settings.stops.empty(), "stopped without a stop string");
}

}  // namespace

void test_cores() {
    namespace fs = std::filesystem;
    const fs::path groups = fs::temp_directory_path() / ("rwkv_cores_" + std::to_string(getpid()));
    const auto write = [&](const char* name, const char* text) { std::ofstream(groups / name) << text; };
    const auto count = [&] { return count_cores(groups.string()); };
    fs::create_directories(groups / "cpu");
    const std::size_t all = count();
    CHECK(all >= 1 && count_cores() <= all, "%zu cores", all);
    write("cpu/cpu.cfs_period_us", "100000\n");
    write("cpu/cpu.cfs_quota_us", "-1\n");
    CHECK(count() == all, "no quota counts");
    write("cpu/cpu.cfs_quota_us", "50000\n");
    CHECK(count() == 1, "half a CPU is not one thread");
    write("cpu/cpu.cfs_quota_us", "150000\n");
    CHECK(count() == std::min<std::size_t>(all, 2), "a quota is not rounded up");
    fs::remove_all(groups / "cpu");
    write("cpu.max", "max 100000\n");
    CHECK(count() == all, "no quota counts");
    write("cpu.max", "1000 100000\n");
    CHECK(count() == 1, "a hundredth of a CPU is not one thread");
    write("cpu.max", "9000000 100000\n");
    CHECK(count() == std::min<std::size_t>(all, 90), "more than there are");
    fs::remove_all(groups);
}

void test_pool() {
    for (const std::size_t threads : {1, 2, 4, 9}) {
        ThreadPool pool(threads);
        Random random(threads);
        for (int round = 0; round < 300; ++round) {
            std::vector<std::atomic<int>> seen(random.below(40));
            pool.run(seen.size(), [&](std::size_t i) { seen[i].fetch_add(1); });
            for (const auto& count : seen) CHECK(count == 1, "an item was done %d times", count.load());
            if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    }
    for (int round = 0; round < 50; ++round) ThreadPool(5).run(3, [](std::size_t) {});
}

void test_vocabulary() {
    Random random(2);
    for (int round = 0; round < 300; ++round) {
        std::vector<std::string> tokens(random.between(1, 80));
        const std::size_t alphabet = random.below(2) == 0 ? 3 : 256;
        for (std::string& token : tokens) token = random_text(random, 5, alphabet);
        const Vocabulary vocabulary(tokens);
        const std::string text = random_text(random, 60, alphabet);
        try {
            std::string back;
            for (const std::uint32_t id : vocabulary.encode(text)) back += vocabulary.bytes(id);
            CHECK(back == text, "the text does not come back");
        } catch (const UncoveredByte& error) {
            for (const std::string& token : tokens) {
                CHECK(token.empty() || text.compare(error.position, token.size(), token) != 0,
                      "the byte at %zu is covered", error.position);
            }
        }
    }
}

void test_sampler() {
    Random random(3);
    for (int round = 0; round < 500; ++round) {
        Sampler sampler(*available_kernels()[random.below(available_kernels().size())]);
        std::vector<float> logits(random.between(1, 1500));
        for (float& logit : logits) {
            logit = random.below(4) == 0 ? -INFINITY
                                         : static_cast<float>(std::floor(random.uniform(-9, 9)) * 20);
        }
        const std::size_t possible = random.below(logits.size());
        logits[possible] = random.below(2) == 0 ? 0 : 3e38f;
        const SamplingSettings settings{random.below(2) == 0 ? random.uniform(0, 2) : 1e-300,
                                        random.uniform(0, 1), random.below(4), random.uniform(0, 1)};
        const std::uint32_t id = sampler.choose(logits, settings, random.uniform(0, 1));
        CHECK(id < logits.size() && logits[id] != -INFINITY, "id %u cannot be chosen", id);
    }
}

void test_model() {
    Random random(4);
    for (const char* name : {"4", "5.0", "5.1", "5.2", "6", "7", "7a", "4+normed", "5.2+normed"}) {
        for (int round = 0; round < 6; ++round) {
            const RandomModel source(random, parse_generation(name));
            check_spec(source.spec);
            test_refusals(random, source);
            test_steps(random, source);
            for (int i = 0; i < 2; ++i) test_decoder(random, source);
        }
    }
}

}  // namespace rwkv::test
