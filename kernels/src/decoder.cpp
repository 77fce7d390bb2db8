#include "rwkv/decoder.h"

#include <algorithm>
#include <chrono>
#include <functional>
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

Ending Decoder::take(std::uint32_t id) {
    ++draw_;
    penalties_.count(id);
    const bool stopped = completes_stop(id);
    if (!all_finite(logits_.data(), logits_.size())) return Ending::non_finite;
    return stopped ? Ending::stop : Ending::running;
}

Ending Decoder::run(std::uint64_t max_tokens, double seconds, std::vector<std::uint32_t>& ids) {
    std::vector<Turn> turns{{this, max_tokens}};
    run_together(turns, seconds);
    ids.insert(ids.end(), turns[0].ids.begin(), turns[0].ids.end());
    return turns[0].ending;
}

void Decoder::run_together(std::vector<Turn>& turns, double seconds) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    std::vector<Decoder*> decoders;
    for (const Turn& turn : turns) decoders.push_back(turn.decoder);
    // Always in the same order, so that two calls cannot wait for each other.
    std::sort(decoders.begin(), decoders.end(), std::less<>());
    std::vector<std::unique_lock<std::mutex>> locks;
    for (const Decoder* decoder : decoders) locks.emplace_back(decoder->mutex_);
    std::vector<Turn*> active;
    for (Turn& turn : turns) {
        const std::vector<float>& logits = turn.decoder->logits_;
        if (!all_finite(logits.data(), logits.size())) {
            turn.ending = Ending::non_finite;
        } else {
            active.push_back(&turn);
        }
    }
    std::vector<std::uint32_t> ids(turns.size());
    while (!active.empty()) {
        std::vector<Turn*> going;
        for (Turn* turn : active) {
            if (turn->decoder->is_cancelled()) {
                turn->ending = Ending::cancelled;
            } else if (turn->ids.size() < turn->max_tokens) {
                going.push_back(turn);
            }
        }
        if (going.empty()) break;
        Model& model = going[0]->decoder->model_;
        model.share(going.size(), [&](std::size_t i) { ids[i] = going[i]->decoder->choose(); });
        std::vector<Segment> segments;
        for (std::size_t i = 0; i < going.size(); ++i) {
            Decoder& own = *going[i]->decoder;
            if (own.settings_.end == ids[i]) {
                going[i]->ending = Ending::end;
            } else {
                segments.push_back({&ids[i], 1, own.state_.data(), own.logits_.data()});
            }
        }
        if (!segments.empty()) model.forward(segments);
        active.clear();
        for (std::size_t i = 0; i < going.size(); ++i) {
            Turn& turn = *going[i];
            if (turn.ending == Ending::end) continue;
            turn.ids.push_back(ids[i]);
            turn.ending = turn.decoder->take(ids[i]);
            if (turn.ending == Ending::running) active.push_back(&turn);
        }
        if (std::chrono::duration<double>(Clock::now() - start).count() >= seconds) break;
    }
    for (Turn* turn : active) {
        if (turn->ending == Ending::running && turn->decoder->is_cancelled()) {
            turn->ending = Ending::cancelled;
        }
    }
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
