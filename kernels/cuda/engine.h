// A model on a device: its states, and what is asked of it.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "api.h"
#include "device.h"
#include "network.h"
#include "rwkv/model.h"
#include "sampler.cuh"

namespace rwkv::cuda {

class Engine {
public:
    // The embedding stays where `weights` has it, which must outlive the engine. Throws Failure.
    Engine(int device, const Spec& spec, const ModelWeights& weights, int slots);
    ~Engine();

    static std::uint64_t need(const Spec& spec, const ModelWeights& weights, int slots);

    // As api.h says, with arguments that are checked here.
    void write_state(int slot, const float* state);
    void read_state(int slot, float* state);
    void copy_state(int from, int to);
    void forward(int runs, const int* slots, const int* counts, const std::uint32_t* ids, float* logits);
    void sampling(int slot, const RwkvCudaSampling& sampling, const std::uint32_t* banned,
                  const std::uint32_t* exempt, const std::uint32_t* counted, const double* values,
                  std::size_t count);
    std::uint32_t choose_after(int slot, const float* logits);
    void step(int count, const int* slots, const std::uint32_t* ids, std::uint32_t* next);
    void read_logits(int index, float* logits);

private:
    // What the host tells the device at the start of a step. Behind it follow the embeddings of all rows,
    // what else was looked up for them, and at the end, in the other direction, the ids that were chosen.
    struct Told {
        Row rows[kMaxRows];
        Run runs[kMaxRows];
        int outputs[kMaxRows];
        int slots[kMaxRows];           // of the outputs
        std::uint32_t fed[kMaxRows];   // to the outputs
    };

    void arrange(Loader& loader);
    void check_slot(int slot) const;
    void check_slots(int count, const int* slots);
    void check_id(std::uint32_t id) const;
    float* state(int slot) const { return states_ + static_cast<std::size_t>(slot) * spec_.state(); }
    std::size_t embedding_bytes() const { return spec_.width * sizeof(float); }
    std::size_t looked_up_bytes() const { return network_->looked_up() * sizeof(float); }
    std::size_t looked_up_place() const { return sizeof(Told) + kMaxRows * embedding_bytes(); }
    std::size_t chosen_place() const { return looked_up_place() + kMaxRows * looked_up_bytes(); }
    Told& told() const { return *reinterpret_cast<Told*>(pinned_.get()); }
    void tell(int row, std::uint32_t id, int slot, bool first, bool last);
    // Enqueues a step over what was told.
    void enqueue(int rows, int runs, int outputs, bool choosing);
    // The same, as one graph that is made once for each number of rows.
    void launch_graph(int rows, bool choosing);

    const Spec spec_;
    const int device_, slots_;
    const Matrix embedding_;
    const ModelWeights* weights_;  // while it is loaded
    Stream stream_;
    Arena arena_;
    Pinned pinned_;
    std::unique_ptr<Network> network_;
    float* states_ = nullptr;      // [slots, state]
    unsigned char* told_ = nullptr;
    std::uint32_t* chosen_ = nullptr;
    Choosers choosers_{};
    std::map<std::pair<int, bool>, cudaGraphExec_t> graphs_;
    std::vector<bool> seen_;       // slots of a call
};

}  // namespace rwkv::cuda
