// One answer being generated: step and sample until something ends it.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "rwkv/model.h"
#include "rwkv/sampler.h"
#include "rwkv/vocabulary.h"

namespace rwkv {

struct DecoderSettings {
    SamplingSettings sampling;
    double presence, frequency, decay;
    std::uint64_t seed;
    std::vector<std::string> stops;           // none empty; any of them in the bytes ends the answer
    std::vector<std::uint32_t> exempt;        // below V
    std::vector<std::uint32_t> generated;     // below V: the answer so far
    std::optional<std::uint32_t> end = 0;     // below V: ends the answer and is not part of it
};

enum class Ending { running, stop, end, cancelled, non_finite };

// Does not survive a fork: a run of the parent may hold its lock for ever in the child.
class Decoder {
public:
    // state [Spec::state()] and logits [V] after the last id. The vocabulary is not larger than V,
    // and has at least one id that can be sampled. Model and vocabulary outlive the decoder.
    Decoder(Model& model, const Vocabulary& vocabulary, std::vector<float> state,
            std::vector<float> logits, DecoderSettings settings);

    // Appends the new ids to `ids`. Runs until max_tokens ids are there, `seconds` have passed (at
    // least one token is tried if max_tokens > 0), or the answer ends.
    Ending run(std::uint64_t max_tokens, double seconds, std::vector<std::uint32_t>& ids);

    // What one decoder of several does in a call.
    struct Turn {
        Decoder* decoder;
        std::uint64_t max_tokens;
        std::vector<std::uint32_t> ids = {};  // the new ones
        Ending ending = Ending::running;
    };

    // As `run` for each of several decoders of one model, none twice, in one pass over the weights
    // for a token of each. One that has ended or has its tokens leaves the others to go on.
    static void run_together(std::vector<Turn>& turns, double seconds);

    // Makes the current and every later run return within one token. From any thread.
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

    const Model& model() const { return model_; }

    // Copies after the last id; they wait for a current run to return.
    std::vector<float> state() const;
    std::vector<float> logits() const;

private:
    std::uint32_t choose();
    // After a pass with `id`: whether, and how, the answer ends with it.
    Ending take(std::uint32_t id);
    bool is_cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
    bool completes_stop(std::uint32_t id);

    Model& model_;
    const Vocabulary& vocabulary_;
    mutable std::mutex mutex_;
    std::atomic<bool> cancelled_{false};
    std::vector<float> state_, logits_;
    DecoderSettings settings_;
    std::uint64_t draw_;                 // tokens generated in this answer
    std::string tail_;                   // the last bytes, those that can begin a stop
    std::size_t longest_stop_ = 0;
    std::vector<std::uint32_t> banned_;  // ids that stand for no text, the end left out
    Penalties penalties_;
    Sampler sampler_;
    std::vector<float> adjusted_;        // [V]
};

}  // namespace rwkv
