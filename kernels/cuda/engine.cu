#include "engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "../src/elements.h"

namespace rwkv::cuda {
namespace {

constexpr int kMaxSlots = kMaxRows;
const char* const kCopying = "copying";
const char* const kComputing = "computing";

}  // namespace

Engine::Engine(int device, const Spec& spec, const ModelWeights& weights, int slots)
    : spec_(spec), device_(device), slots_(slots), embedding_(weights.emb), weights_(&weights),
      seen_(static_cast<std::size_t>(std::max(slots, 0))) {
    if (slots < 1 || slots > kMaxSlots) {
        refuse("A model has 1 to " + std::to_string(kMaxSlots) + " states on the GPU.");
    }
    network_ = make_network(spec);
    if (device < 0) return;  // only measured
    check(cudaSetDevice(device), "choosing the GPU");
    stream_.make();
    Loader loader(arena_, stream_.get());
    arrange(loader);
    arena_.make(stream_.get(), loader.staging());
    loader.fill();
    arrange(loader);
    loader.finish();
    pinned_.make(chosen_place() + kMaxRows * sizeof(std::uint32_t));
    weights_ = nullptr;
    const std::vector<float> start = spec.new_state();
    for (int slot = 0; slot < slots; ++slot) write_state(slot, start.data());
}

Engine::~Engine() {
    if (device_ < 0) return;
    cudaSetDevice(device_);
    for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
}

std::uint64_t Engine::need(const Spec& spec, const ModelWeights& weights, int slots) {
    Engine measured(-1, spec, weights, slots);
    Loader loader(measured.arena_, nullptr);
    measured.arrange(loader);
    return measured.arena_.measured() + loader.staging();
}

// The same order whether memory is measured or handed out.
void Engine::arrange(Loader& loader) {
    const auto slots = static_cast<std::size_t>(slots_);
    network_->load(loader, arena_, *weights_, slots_);
    states_ = arena_.take<float>(slots * spec_.state());
    told_ = arena_.take<unsigned char>(chosen_place());
    chosen_ = arena_.take<std::uint32_t>(kMaxRows);
    choosers_.vocabulary = static_cast<int>(spec_.vocabulary);
    const auto words = static_cast<std::size_t>(choosers_.words());
    choosers_.each = arena_.take<Chooser>(slots);
    choosers_.counts = arena_.take<Count>(slots * spec_.vocabulary);
    choosers_.banned = arena_.take<std::uint32_t>(slots * words);
    choosers_.exempt = arena_.take<std::uint32_t>(slots * words);
    choosers_.adjusted = arena_.take<float>(slots * spec_.vocabulary);
}

void Engine::check_slot(int slot) const {
    if (slot < 0 || slot >= slots_) {
        refuse("There is no state " + std::to_string(slot) + " on the GPU.");
    }
}

void Engine::check_slots(int count, const int* slots) {
    if (count < 1 || count > slots_) refuse("There are too few or too many states in a call.");
    std::fill(seen_.begin(), seen_.end(), false);
    for (int i = 0; i < count; ++i) {
        check_slot(slots[i]);
        if (seen_[static_cast<std::size_t>(slots[i])]) refuse("A state is twice in a call.");
        seen_[static_cast<std::size_t>(slots[i])] = true;
    }
}

void Engine::check_id(std::uint32_t id) const {
    if (id >= spec_.vocabulary) {
        refuse("Token id " + std::to_string(id) + " is outside the vocabulary of " +
               std::to_string(spec_.vocabulary) + ".");
    }
}

void Engine::write_state(int slot, const float* from) {
    check_slot(slot);
    check(cudaMemcpyAsync(state(slot), from, spec_.state() * sizeof(float), cudaMemcpyHostToDevice,
                          stream_.get()), kCopying);
    stream_.wait();
}

void Engine::read_state(int slot, float* to) {
    check_slot(slot);
    check(cudaMemcpyAsync(to, state(slot), spec_.state() * sizeof(float), cudaMemcpyDeviceToHost,
                          stream_.get()), kCopying);
    stream_.wait();
}

void Engine::copy_state(int from, int to) {
    check_slot(from);
    check_slot(to);
    check(cudaMemcpyAsync(state(to), state(from), spec_.state() * sizeof(float),
                          cudaMemcpyDeviceToDevice, stream_.get()), kCopying);
    stream_.wait();
}

void Engine::tell(int row, std::uint32_t id, int slot, bool first, bool last) {
    told().rows[row] = {slot, first, last};
    const auto at = static_cast<std::size_t>(row);
    copy_row(embedding_, id,
             reinterpret_cast<float*>(pinned_.get() + sizeof(Told) + at * embedding_bytes()));
    network_->look_up(id, reinterpret_cast<float*>(pinned_.get() + looked_up_place() + at * looked_up_bytes()));
}

void Engine::enqueue(int rows, int runs, int outputs, bool choosing) {
    const cudaStream_t stream = stream_.get();
    auto* told = reinterpret_cast<Told*>(told_);
    const auto count = static_cast<std::size_t>(rows);
    check(cudaMemcpyAsync(told_, pinned_.get(), sizeof(Told) + count * embedding_bytes(),
                          cudaMemcpyHostToDevice, stream), kCopying);
    if (looked_up_bytes() > 0) {
        check(cudaMemcpyAsync(told_ + looked_up_place(), pinned_.get() + looked_up_place(),
                              count * looked_up_bytes(), cudaMemcpyHostToDevice, stream), kCopying);
    }
    const Batch batch{told->rows, told->runs, told->outputs, rows, runs, outputs, states_, spec_.state()};
    network_->run(batch, reinterpret_cast<const float*>(told_ + sizeof(Told)),
                  reinterpret_cast<const float*>(told_ + looked_up_place()), stream);
    if (!choosing) return;
    check(choose(choosers_, network_->logits(), told->slots, told->fed, outputs, chosen_, stream),
          kComputing);
    check(cudaMemcpyAsync(pinned_.get() + chosen_place(), chosen_, static_cast<std::size_t>(outputs) * sizeof *chosen_,
                          cudaMemcpyDeviceToHost, stream), kCopying);
}

void Engine::launch_graph(int rows, bool choosing) {
    cudaGraphExec_t& exec = graphs_[{rows, choosing}];
    if (exec == nullptr) {
        cudaGraph_t graph = nullptr;
        check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), kComputing);
        try {
            enqueue(rows, rows, rows, choosing);
        } catch (const Failure&) {
            static_cast<void>(cudaStreamEndCapture(stream_.get(), &graph));
            if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
            throw;
        }
        check(cudaStreamEndCapture(stream_.get(), &graph), kComputing);
        const int code = cudaGraphInstantiate(&exec, graph, 0);
        static_cast<void>(cudaGraphDestroy(graph));
        check(code, kComputing);
    }
    check(cudaGraphLaunch(exec, stream_.get()), kComputing);
}

void Engine::forward(int runs, const int* slots, const int* counts, const std::uint32_t* ids,
                     float* logits) {
    check_slots(runs, slots);
    std::size_t total = 0;
    for (int i = 0; i < runs; ++i) {
        if (counts[i] < 1) refuse("Every state needs at least one token id.");
        total += static_cast<std::size_t>(counts[i]);
    }
    for (std::size_t i = 0; i < total; ++i) check_id(ids[i]);
    int rows = 0, parts = 0, outputs = 0;
    const auto flush = [&] {
        if (rows == 0) return;
        if (parts == rows && outputs == rows) {
            launch_graph(rows, false);
        } else {
            enqueue(rows, parts, outputs, false);
        }
        const std::size_t size = static_cast<std::size_t>(outputs) * spec_.vocabulary;
        if (size > 0) {
            check(cudaMemcpyAsync(logits, network_->logits(), size * sizeof(float), cudaMemcpyDeviceToHost,
                                  stream_.get()), kCopying);
        }
        stream_.wait();
        logits += size;
        rows = parts = outputs = 0;
    };
    for (int run = 0; run < runs; ++run) {
        for (int done = 0; done < counts[run];) {
            const int count = std::min(kMaxRows - rows, counts[run] - done);
            for (int i = 0; i < count; ++i) {
                tell(rows + i, ids[done + i], slots[run], i == 0, i == count - 1);
            }
            told().runs[parts++] = {rows, count, slots[run]};
            rows += count;
            done += count;
            if (done == counts[run]) told().outputs[outputs++] = rows - 1;
            if (rows == kMaxRows) flush();
        }
        ids += counts[run];
    }
    flush();
}

void Engine::sampling(int slot, const RwkvCudaSampling& how, const std::uint32_t* banned,
                      const std::uint32_t* exempt, const std::uint32_t* counted, const double* values,
                      std::size_t count) {
    check_slot(slot);
    if (count > spec_.vocabulary) refuse("There are more counted ids than tokens.");
    std::vector<Count> counts;
    for (std::size_t i = 0; i < count; ++i) {
        check_id(counted[i]);
        counts.push_back({counted[i], 0.0f, values[i]});
    }
    const Chooser chooser{how.temperature, how.top_p, how.min_p, how.presence, how.frequency, how.decay,
                          how.top_k, how.seed, how.draw, static_cast<std::uint32_t>(count)};
    const auto at = static_cast<std::size_t>(slot);
    const auto words = static_cast<std::size_t>(choosers_.words());
    const auto put = [&](void* to, const void* from, std::size_t bytes) {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get()), kCopying);
    };
    put(choosers_.each + at, &chooser, sizeof chooser);
    put(choosers_.banned + at * words, banned, words * sizeof *banned);
    put(choosers_.exempt + at * words, exempt, words * sizeof *exempt);
    if (count > 0) put(choosers_.counts + at * spec_.vocabulary, counts.data(), count * sizeof(Count));
    stream_.wait();
}

std::uint32_t Engine::choose_after(int slot, const float* logits) {
    check_slot(slot);
    told().slots[0] = slot;
    auto* told = reinterpret_cast<Told*>(told_);
    std::uint32_t id = 0;
    check(cudaMemcpyAsync(told_, pinned_.get(), sizeof(Told), cudaMemcpyHostToDevice, stream_.get()),
          kCopying);
    check(cudaMemcpyAsync(network_->logits(), logits, spec_.vocabulary * sizeof(float),
                          cudaMemcpyHostToDevice, stream_.get()), kCopying);
    check(choose(choosers_, network_->logits(), told->slots, nullptr, 1, chosen_, stream_.get()),
          kComputing);
    check(cudaMemcpyAsync(&id, chosen_, sizeof id, cudaMemcpyDeviceToHost, stream_.get()), kCopying);
    stream_.wait();
    return id;
}

void Engine::step(int count, const int* slots, const std::uint32_t* ids, std::uint32_t* next) {
    check_slots(count, slots);
    for (int i = 0; i < count; ++i) check_id(ids[i]);
    for (int i = 0; i < count; ++i) {
        tell(i, ids[i], slots[i], true, true);
        told().runs[i] = {i, 1, slots[i]};
        told().outputs[i] = i;
        told().slots[i] = slots[i];
        told().fed[i] = ids[i];
    }
    launch_graph(count, true);
    stream_.wait();
    std::copy_n(reinterpret_cast<const std::uint32_t*>(pinned_.get() + chosen_place()), count, next);
}

void Engine::read_logits(int index, float* logits) {
    check_slot(index);
    check(cudaMemcpyAsync(logits, network_->logits() + static_cast<std::size_t>(index) * spec_.vocabulary,
                          spec_.vocabulary * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
          kCopying);
    stream_.wait();
}

}  // namespace rwkv::cuda
