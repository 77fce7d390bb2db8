#include "rwkv/model.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "step.h"

namespace rwkv {

struct Model::Workshop {
    Workshop(const Spec& spec, const ModelWeights& weights, const Kernels& kernels,
             std::size_t threads)
        : pool(threads), step(make_step(spec, weights, kernels, pool)) {}

    std::mutex turn;
    ThreadPool pool;
    std::unique_ptr<Step> step;
};

Model::Model(const Spec& spec, ModelWeights weights, const Kernels& kernels, std::size_t threads)
    : spec_(spec), weights_(std::move(weights)), kernels_(kernels), threads_(threads),
      owner_(getpid()),
      workshop_(std::make_unique<Workshop>(spec_, weights_, kernels_, threads)) {}

Model::~Model() {
    // Threads do not survive a fork, so the child has none to join.
    if (owner_ != getpid()) static_cast<void>(workshop_.release());
}

Model::Workshop& Model::workshop() {
    if (owner_ != getpid()) {
        auto own = std::make_unique<Workshop>(spec_, weights_, kernels_, threads_);
        inherited_channels_ += workshop_->step->active_channels();
        static_cast<void>(workshop_.release());
        workshop_ = std::move(own);
        owner_ = getpid();
    }
    return *workshop_;
}

std::size_t Model::threads() const { return workshop_->pool.size(); }

std::uint64_t Model::active_channels() {
    const Workshop& shop = workshop();
    return inherited_channels_ + shop.step->active_channels();
}

void Model::copy_states(const std::vector<Segment>& segments, ThreadPool& pool) const {
    constexpr std::size_t kPiece = 1 << 16;
    const std::size_t size = spec_.state() * sizeof(float);
    const std::size_t pieces = (size + kPiece - 1) / kPiece;
    for (const Segment& segment : segments) {
        if (segment.before == nullptr) continue;
        pool.run(pieces, [&](std::size_t piece) {
            const std::size_t first = piece * kPiece;
            std::memcpy(reinterpret_cast<unsigned char*>(segment.state) + first,
                        segment.before + first, std::min(kPiece, size - first));
        });
    }
}

void Model::share(std::size_t count, const std::function<void(std::size_t)>& body) {
    Workshop& shop = workshop();
    const std::lock_guard<std::mutex> turn(shop.turn);
    std::exception_ptr failure;
    std::mutex failing;
    shop.pool.run(count, [&](std::size_t i) {
        try {
            body(i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failing);
            failure = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

void Model::forward(const std::vector<Segment>& segments) {
    Workshop& shop = workshop();
    const std::lock_guard<std::mutex> turn(shop.turn);
    copy_states(segments, shop.pool);
    std::vector<std::uint32_t> ids;
    std::vector<Run> runs;
    const auto flush = [&] {
        if (!ids.empty()) shop.step->forward(ids.data(), ids.size(), runs);
        ids.clear();
        runs.clear();
    };
    for (const Segment& segment : segments) {
        for (std::size_t start = 0; start < segment.count;) {
            const std::size_t count = std::min(Step::kMaxRows - ids.size(), segment.count - start);
            const bool last = start + count == segment.count;
            runs.push_back({ids.size(), count, segment.state, last ? segment.logits : nullptr});
            ids.insert(ids.end(), segment.ids + start, segment.ids + start + count);
            start += count;
            if (ids.size() == Step::kMaxRows) flush();
        }
    }
    flush();
}

}  // namespace rwkv
