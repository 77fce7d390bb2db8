#include "rwkv/decoder.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

namespace rwkv {
namespace {

std::vector<bool> marks(const std::vector<std::uint32_t>& ids, std::size_t size) {
    std::vector<bool> marked(size, false);
    for (const std::uint32_t id : ids) marked[id] = true;
    return marked;
}

}  // namespace

Decoder::Decoder(Model& model, const Vocabulary& vocabulary, std::vector<float> state,
                 std::vector<float> logits, DecoderSettings settings)
    : model_(model), vocabulary_(vocabulary), state_(std::move(state)), logits_(std::move(logits)),
      settings_(std::move(settings)), draw_(settings_.generated.size()),
      penalties_(settings_.presence, settings_.frequency, settings_.decay,
                 marks(settings_.exempt, model.spec().vocabulary)),
      sampler_(model.kernels()) {
    for (const std::string& stop : settings_.stops) {
        longest_stop_ = std::max(longest_stop_, stop.size());
    }
    for (std::uint32_t id = 0; id < model_.spec().vocabulary; ++id) {
        if (settings_.end == id) continue;
        if (id >= vocabulary_.size() || vocabulary_.bytes(id).empty()) banned_.push_back(id);
    }
    for (const std::uint32_t id : settings_.generated) {
        penalties_.count(id);
        completes_stop(id);
    }
}

// Adds the bytes of `id` to the tail, and tells whether a stop string ends within them.
bool Decoder::completes_stop(std::uint32_t id) {
    const std::size_t old = tail_.size();
    if (id < vocabulary_.size()) tail_ += vocabulary_.bytes(id);
    const bool found =
        std::any_of(settings_.stops.begin(), settings_.stops.end(), [&](const std::string& stop) {
            const std::size_t first = old < stop.size() ? 0 : old - stop.size() + 1;
            return tail_.find(stop, first) != std::string::npos;
        });
    const std::size_t kept = longest_stop_ == 0 ? 0 : longest_stop_ - 1;
    if (tail_.size() > kept) tail_.erase(0, tail_.size() - kept);
    return found;
}

std::uint32_t Decoder::choose() {
    adjusted_ = logits_;
    penalties_.apply(adjusted_);
    for (const std::uint32_t id : banned_) adjusted_[id] = -std::numeric_limits<float>::infinity();
    return sampler_.choose(adjusted_, settings_.sampling, random_number(settings_.seed, draw_));
}

Ending Decoder::run(std::uint64_t max_tokens, double seconds, std::vector<std::uint32_t>& ids) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!all_finite(logits_.data(), logits_.size())) return Ending::non_finite;
    for (std::uint64_t count = 0; count < max_tokens; ++count) {
        if (cancelled_.load(std::memory_order_relaxed)) return Ending::cancelled;
        const std::uint32_t id = choose();
        if (settings_.end == id) return Ending::end;
        model_.forward({{&id, 1, state_.data(), logits_.data()}});
        ids.push_back(id);
        ++draw_;
        penalties_.count(id);
        const bool stopped = completes_stop(id);
        if (!all_finite(logits_.data(), logits_.size())) return Ending::non_finite;
        if (stopped) return Ending::stop;
        if (std::chrono::duration<double>(Clock::now() - start).count() >= seconds) break;
    }
    return cancelled_.load(std::memory_order_relaxed) ? Ending::cancelled : Ending::running;
}

std::vector<float> Decoder::state() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return state_;
}

std::vector<float> Decoder::logits() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return logits_;
}

}  // namespace rwkv
