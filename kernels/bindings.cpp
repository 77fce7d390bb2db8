// The Python door of the core, and the only place that distrusts its caller.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rwkv/bandwidth.h"
#include "rwkv/cores.h"
#include "rwkv/decoder.h"
#include "rwkv/dispatch.h"
#include "rwkv/loading.h"
#include "rwkv/model.h"
#include "rwkv/sampler.h"
#include "rwkv/vocabulary.h"

namespace nb = nanobind;

namespace {

using Floats = nb::ndarray<nb::numpy, float>;
using Ids = std::vector<std::int64_t>;

constexpr std::size_t kMaxThreads = 256;

[[noreturn]] void refuse(const std::string& sentence) { throw nb::value_error(sentence.c_str()); }

// Runs without the GIL. A thread that wants it back while the interpreter ends is ended by Python:
// some systems unwind its C++ frames for that, which would abort the process, so it stops here.
class Unlocked {
public:
    Unlocked() : thread_(PyEval_SaveThread()) {}
    ~Unlocked() {
        try {
            PyEval_RestoreThread(thread_);
        } catch (...) {
            for (;;) pause();
        }
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

private:
    PyThreadState* thread_;
};

// A borrowed C-contiguous array of float32, uint16, int8 or uint8, kept alive; it may be read-only and
// unaligned.
class Buffer {
public:
    Buffer(nb::handle object, const std::string& name) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
            PyErr_Clear();
            refuse(name + " must be a C-contiguous numpy array.");
        }
        std::string format = view_.format == nullptr ? "B" : view_.format;
        if (!format.empty() && std::strchr("@=<^", format[0]) != nullptr) format.erase(0, 1);
        if (format == "f" && view_.itemsize == 4) {
            weights_ = rwkv::Weights::f32;
        } else if (format == "H" && view_.itemsize == 2) {
            weights_ = rwkv::Weights::bf16;
        } else if (format == "b" && view_.itemsize == 1) {
            weights_ = view_.ndim == 3 ? rwkv::Weights::q8 : rwkv::Weights::q8_rows;
        } else if (format == "B" && view_.itemsize == 1) {
            weights_ = view_.ndim == 3 ? rwkv::Weights::q4 : rwkv::Weights::q4_rows;
        } else {
            PyBuffer_Release(&view_);
            refuse(name + " must be an array of float32 (or for weights uint16 as bfloat16, int8, or uint8).");
        }
    }
    ~Buffer() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }
    Buffer(Buffer&& other) noexcept
        : view_(std::exchange(other.view_, Py_buffer{})), weights_(other.weights_) {}
    Buffer& operator=(Buffer&&) = delete;

    rwkv::Tensor tensor() const {
        return {static_cast<const unsigned char*>(view_.buf), shape(), weights_};
    }

    std::vector<std::size_t> shape() const { return {view_.shape, view_.shape + view_.ndim}; }

    // The elements of a float32 array of exactly this shape.
    std::vector<float> floats(const std::vector<std::size_t>& wanted, const std::string& name) const {
        const unsigned char* data = view(wanted, name);
        std::vector<float> values(static_cast<std::size_t>(view_.len) / sizeof(float));
        if (!values.empty()) std::memcpy(values.data(), data, values.size() * sizeof(float));
        return values;
    }

    // The same without a copy, at any address.
    const unsigned char* view(const std::vector<std::size_t>& wanted, const std::string& name) const {
        std::string text;
        for (const std::size_t n : wanted) {
            text += (text.empty() ? "" : ", ") + std::to_string(n);
        }
        if (weights_ != rwkv::Weights::f32 || shape() != wanted) {
            refuse(name + " must be a float32 array of shape [" + text + "].");
        }
        return static_cast<const unsigned char*>(view_.buf);
    }

private:
    Py_buffer view_{};
    rwkv::Weights weights_{};
};

// A new numpy array of numbers that are yet to be written.
Floats make_array(std::size_t size) {
    std::unique_ptr<float[]> owned(new float[size]);
    float* data = owned.get();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    static_cast<void>(owned.release());
    return Floats(data, {size}, owner);
}

// A new numpy array over `values`.
Floats to_array(std::vector<float>&& values, std::vector<std::size_t> shape) {
    auto owned = std::make_unique<std::vector<float>>(std::move(values));
    float* data = owned->data();
    nb::capsule owner(owned.get(), [](void* p) noexcept {
        delete static_cast<std::vector<float>*>(p);
    });
    static_cast<void>(owned.release());
    return Floats(data, shape.size(), shape.data(), owner);
}

std::vector<std::uint32_t> check_ids(const Ids& ids, std::size_t size) {
    std::vector<std::uint32_t> checked;
    checked.reserve(ids.size());
    for (const std::int64_t id : ids) {
        if (id < 0 || static_cast<std::uint64_t>(id) >= size) {
            throw nb::index_error(("Token id " + std::to_string(id) +
                                   " is outside the vocabulary of " + std::to_string(size) + ".")
                                      .c_str());
        }
        checked.push_back(static_cast<std::uint32_t>(id));
    }
    return checked;
}

// Bytes objects only.
std::vector<std::string> check_bytes(const nb::sequence& items, const char* what) {
    std::vector<std::string> result;
    result.reserve(nb::len(items));
    for (nb::handle item : items) {
        if (!PyBytes_Check(item.ptr())) {
            throw nb::type_error((std::string(what) + " must be bytes objects.").c_str());
        }
        result.emplace_back(PyBytes_AS_STRING(item.ptr()), PyBytes_GET_SIZE(item.ptr()));
    }
    return result;
}

void check_range(const char* name, double value, double least, double most) {
    if (value >= least && value <= most) return;
    refuse(std::string(name) + " must lie between " + std::to_string(least) + " and " +
           std::to_string(most) + ", not " + std::to_string(value) + ".");
}

rwkv::SamplingSettings check_sampling(double temperature, double top_p, std::uint64_t top_k,
                                      double min_p) {
    check_range("temperature", temperature, 0, 1e6);
    check_range("top_p", top_p, 0, 1);
    check_range("min_p", min_p, 0, 1);
    return {temperature, top_p, top_k, min_p};
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const rwkv::Kernels* kernels : rwkv::available_kernels()) names.emplace_back(kernels->name);
    return names;
}

std::uint32_t sample(nb::handle logits, double temperature, double top_p, std::uint64_t top_k,
                     double min_p, std::uint64_t seed, std::uint64_t draw) {
    const rwkv::SamplingSettings settings = check_sampling(temperature, top_p, top_k, min_p);
    const Buffer buffer(logits, "logits");
    const std::vector<std::size_t> shape = buffer.shape();
    if (shape.size() != 1 || shape[0] == 0) refuse("logits must be a float32 array of shape [V].");
    const std::vector<float> values = buffer.floats(shape, "logits");
    bool possible = false;
    for (const float value : values) {
        if (std::isnan(value) || value == INFINITY) refuse("The logits hold NaN or infinity.");
        possible = possible || value != -INFINITY;
    }
    if (!possible) refuse("The logits leave no token that can be chosen.");
    const rwkv::Kernels& kernels = rwkv::choose_kernels("");
    const Unlocked unlocked;
    rwkv::Sampler sampler(kernels);
    return sampler.choose(values, settings, rwkv::random_number(seed, draw));
}

double read_bandwidth(std::size_t threads) {
    if (threads < 1 || threads > kMaxThreads) {
        refuse("threads must lie between 1 and " + std::to_string(kMaxThreads) + ".");
    }
    const rwkv::Kernels& kernels = rwkv::choose_kernels("");
    const Unlocked unlocked;
    return rwkv::read_bandwidth(kernels, threads);
}

void init_vocabulary(rwkv::Vocabulary* self, const nb::sequence& token_bytes) {
    new (self) rwkv::Vocabulary(check_bytes(token_bytes, "The tokens of a vocabulary"));
}

std::vector<std::uint32_t> encode(const rwkv::Vocabulary& self, const nb::bytes& data) {
    try {
        const std::string_view view(data.c_str(), data.size());
        const Unlocked unlocked;
        return self.encode(view);
    } catch (const rwkv::UncoveredByte& error) {
        refuse("No token covers byte " + std::to_string(error.value) + " at position " +
               std::to_string(error.position) + ".");
    }
}

nb::bytes decode(const rwkv::Vocabulary& self, const Ids& ids) {
    std::string text;
    for (const std::uint32_t id : check_ids(ids, self.size())) text += self.bytes(id);
    return nb::bytes(text.data(), text.size());
}

struct PyModel {
    std::vector<Buffer> buffers;  // what the weights are borrowed from
    std::unique_ptr<rwkv::Model> model;
};

rwkv::Spec read_spec(const nb::mapping& fields) {
    const auto field = [&](const char* name) {
        const nb::str key(name);
        if (!fields.contains(key)) refuse(std::string("The spec has no field ") + name + ".");
        return nb::object(fields[key]);
    };
    std::string generation;
    if (!nb::try_cast(field("generation"), generation)) {
        refuse("The spec's generation must be a string.");
    }
    rwkv::Spec spec = rwkv::parse_generation(generation);
    static const std::pair<const char*, std::size_t rwkv::Spec::*> sizes[] = {
        {"n_layer", &rwkv::Spec::layers},       {"n_embd", &rwkv::Spec::width},
        {"n_att", &rwkv::Spec::att_width},      {"vocab_size", &rwkv::Spec::vocabulary},
        {"head_size", &rwkv::Spec::head_size},  {"n_ffn", &rwkv::Spec::hidden},
        {"rank_w", &rwkv::Spec::rank_w},        {"rank_a", &rwkv::Spec::rank_a},
        {"rank_v", &rwkv::Spec::rank_v},        {"rank_g", &rwkv::Spec::rank_g},
        {"rank_mix", &rwkv::Spec::rank_mix}};
    for (const auto& [name, size] : sizes) {
        std::int64_t value = 0;
        if (!nb::try_cast(field(name), value) || value < 0) {
            refuse(std::string("The spec's ") + name + " must be a whole number from 0.");
        }
        spec.*size = static_cast<std::size_t>(value);
    }
    if (!nb::try_cast(field("group_norm_eps"), spec.group_norm_eps)) {
        refuse("The spec's group_norm_eps must be a number.");
    }
    rwkv::check_spec(spec);
    return spec;
}

void init_model(PyModel* self, const nb::mapping& fields, const nb::mapping& tensors,
                std::size_t threads, const std::string& isa) {
    const rwkv::Spec spec = read_spec(fields);
    const rwkv::Kernels& kernels = rwkv::choose_kernels(isa);
    if (threads > kMaxThreads) {
        refuse("threads must lie between 0 and " + std::to_string(kMaxThreads) + ".");
    }
    if (threads == 0) threads = std::min(rwkv::count_cores(), kMaxThreads);
    PyModel result;
    std::map<std::string, rwkv::Tensor> named;
    for (nb::handle item : tensors.items()) {
        const auto name = nb::cast<std::string>(item[0]);
        result.buffers.emplace_back(item[1], "Tensor " + name);
        named[name] = result.buffers.back().tensor();
    }
    result.model = std::make_unique<rwkv::Model>(spec, rwkv::load_weights(spec, named), kernels,
                                                 threads);
    new (self) PyModel(std::move(result));
}

std::pair<Floats, Floats> forward(PyModel& self, const Ids& ids, nb::handle state) {
    const rwkv::Spec& spec = self.model->spec();
    const std::vector<std::uint32_t> checked = check_ids(ids, spec.vocabulary);
    if (checked.empty()) refuse("forward needs at least one token id.");
    std::optional<Buffer> given;
    std::vector<float> start;
    if (state.is_none()) {
        start = spec.new_state();
    } else {
        given.emplace(state, "state");
    }
    const unsigned char* before = given.has_value()
                                      ? given->view({spec.state()}, "state")
                                      : reinterpret_cast<const unsigned char*>(start.data());
    Floats next = make_array(spec.state());
    Floats logits = make_array(spec.vocabulary);
    {
        const Unlocked unlocked;
        self.model->forward({{checked.data(), checked.size(), next.data(), logits.data(), before}});
    }
    return {std::move(logits), std::move(next)};
}

std::pair<Floats, std::vector<Floats>> forward_batch(PyModel& self, const Ids& ids,
                                                     const nb::sequence& states) {
    const rwkv::Spec& spec = self.model->spec();
    const std::vector<std::uint32_t> checked = check_ids(ids, spec.vocabulary);
    const std::size_t batch = checked.size();
    if (batch == 0) refuse("forward_batch needs at least one token id.");
    if (nb::len(states) != batch) refuse("forward_batch needs a state for every token id.");
    std::vector<Buffer> given;
    given.reserve(batch);
    std::vector<Floats> next;
    std::vector<float> logits(batch * spec.vocabulary);
    std::vector<rwkv::Segment> segments;
    const std::vector<float> start = spec.new_state();
    for (nb::handle state : states) {
        const std::size_t i = segments.size();
        const auto* before = reinterpret_cast<const unsigned char*>(start.data());
        if (!state.is_none()) {
            given.emplace_back(state, "state");
            before = given.back().view({spec.state()}, "state");
        }
        next.push_back(make_array(spec.state()));
        segments.push_back({&checked[i], 1, next[i].data(), &logits[i * spec.vocabulary], before});
    }
    {
        const Unlocked unlocked;
        self.model->forward(segments);
    }
    return {to_array(std::move(logits), {batch, spec.vocabulary}), std::move(next)};
}

void init_decoder(rwkv::Decoder* self, PyModel& model, const rwkv::Vocabulary& vocabulary,
                  nb::handle state, nb::handle logits, double temperature, double top_p,
                  std::uint64_t top_k, double min_p, double presence, double frequency, double decay,
                  std::uint64_t seed, const nb::sequence& stops, const Ids& exempt,
                  const Ids& generated, std::optional<std::int64_t> end) {
    const rwkv::Spec& spec = model.model->spec();
    if (vocabulary.size() > spec.vocabulary) {
        refuse("The vocabulary has " + std::to_string(vocabulary.size()) +
               " tokens and the model only " + std::to_string(spec.vocabulary) + ".");
    }
    check_range("presence", presence, -1e6, 1e6);
    check_range("frequency", frequency, -1e6, 1e6);
    check_range("decay", decay, 0, 1);
    rwkv::DecoderSettings settings{
        check_sampling(temperature, top_p, top_k, min_p), presence, frequency, decay, seed,
        check_bytes(stops, "Stop strings"), check_ids(exempt, spec.vocabulary),
        check_ids(generated, spec.vocabulary), std::nullopt};
    if (end.has_value()) settings.end = check_ids({*end}, spec.vocabulary)[0];
    if (!settings.end.has_value() && !vocabulary.has_text()) {
        refuse("The vocabulary has no token that can be chosen.");
    }
    for (const std::string& stop : settings.stops) {
        if (stop.empty()) refuse("A stop string must not be empty.");
    }
    new (self) rwkv::Decoder(*model.model, vocabulary,
                             Buffer(state, "state").floats({spec.state()}, "state"),
                             Buffer(logits, "logits").floats({spec.vocabulary}, "logits"),
                             std::move(settings));
}

const char* name_of(rwkv::Ending ending) {
    switch (ending) {
        case rwkv::Ending::running: return "running";
        case rwkv::Ending::stop: return "stop";
        case rwkv::Ending::end: return "end";
        case rwkv::Ending::cancelled: return "cancelled";
        case rwkv::Ending::non_finite: break;
    }
    return "non_finite";
}

std::pair<std::vector<std::uint32_t>, std::string> run(rwkv::Decoder& self, std::int64_t max_tokens,
                                                       double seconds) {
    if (max_tokens < 0) refuse("max_tokens must not be negative.");
    if (std::isnan(seconds)) refuse("seconds must be a number.");
    std::vector<std::uint32_t> ids;
    const Unlocked unlocked;
    const rwkv::Ending ending = self.run(static_cast<std::uint64_t>(max_tokens), seconds, ids);
    return {std::move(ids), name_of(ending)};
}

std::vector<std::pair<std::vector<std::uint32_t>, std::string>> run_together(
    const nb::sequence& decoders, const Ids& max_tokens, double seconds) {
    if (nb::len(decoders) != max_tokens.size()) refuse("max_tokens must have one for each decoder.");
    if (std::isnan(seconds)) refuse("seconds must be a number.");
    std::vector<rwkv::Decoder::Turn> turns;
    for (nb::handle decoder : decoders) {
        const std::int64_t most = max_tokens[turns.size()];
        if (most < 0) refuse("max_tokens must not be negative.");
        auto* own = nb::cast<rwkv::Decoder*>(decoder);
        for (const rwkv::Decoder::Turn& other : turns) {
            if (own == other.decoder || &own->model() != &other.decoder->model()) {
                refuse("Decoders that run together must be different ones of one model.");
            }
        }
        turns.push_back({own, static_cast<std::uint64_t>(most)});
    }
    {
        const Unlocked unlocked;
        rwkv::Decoder::run_together(turns, seconds);
    }
    std::vector<std::pair<std::vector<std::uint32_t>, std::string>> results;
    for (rwkv::Decoder::Turn& turn : turns) {
        results.emplace_back(std::move(turn.ids), name_of(turn.ending));
    }
    return results;
}

// Waits for a current run, which needs the GIL to return.
template <auto kRead>
Floats copy_of(const rwkv::Decoder& self) {
    std::vector<float> values;
    {
        const Unlocked unlocked;
        values = (self.*kRead)();
    }
    const std::size_t size = values.size();
    return to_array(std::move(values), {size});
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "The compiled core.";
    // What a daemon thread holds when the program ends is no leak worth a word to its user.
    nb::set_leak_warnings(false);
    module.def("isas", &isas);
    module.def("count_cores", [] { return std::min(rwkv::count_cores(), kMaxThreads); });
    module.def("read_bandwidth", &read_bandwidth, nb::arg("threads"));
    module.def("sample", &sample, nb::arg("logits"), nb::arg("temperature"), nb::arg("top_p"),
               nb::arg("top_k"), nb::arg("min_p"), nb::arg("seed"), nb::arg("draw"));

    nb::class_<rwkv::Vocabulary>(module, "Vocabulary")
        .def("__init__", &init_vocabulary, nb::arg("token_bytes"))
        .def("__len__", &rwkv::Vocabulary::size)
        .def("encode", &encode, nb::arg("data"))
        .def("decode", &decode, nb::arg("ids"));

    nb::class_<PyModel>(module, "Model")
        .def("__init__", &init_model, nb::arg("spec"), nb::arg("tensors"), nb::arg("threads"),
             nb::arg("isa"))
        .def_prop_ro("isa", [](const PyModel& self) { return self.model->kernels().name; })
        .def_prop_ro("threads", [](const PyModel& self) { return self.model->threads(); })
        .def_prop_ro("active_channels", [](PyModel& self) { return self.model->active_channels(); })
        .def("forward", &forward, nb::arg("ids"), nb::arg("state").none())
        .def("forward_batch", &forward_batch, nb::arg("ids"), nb::arg("states"));

    nb::class_<rwkv::Decoder>(module, "Decoder")
        .def("__init__", &init_decoder, nb::arg("model"), nb::arg("vocabulary"), nb::arg("state"),
             nb::arg("logits"), nb::kw_only(), nb::arg("temperature"), nb::arg("top_p"),
             nb::arg("top_k"), nb::arg("min_p"), nb::arg("presence"), nb::arg("frequency"),
             nb::arg("decay"), nb::arg("seed"), nb::arg("stops"), nb::arg("exempt"),
             nb::arg("generated"), nb::arg("end").none() = 0, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
        .def("run", &run, nb::arg("max_tokens"), nb::arg("seconds"))
        .def_static("run_together", &run_together, nb::arg("decoders"), nb::arg("max_tokens"),
                    nb::arg("seconds"))
        .def("cancel", &rwkv::Decoder::cancel)
        .def_prop_ro("state", &copy_of<&rwkv::Decoder::state>, nb::rv_policy::move)
        .def_prop_ro("logits", &copy_of<&rwkv::Decoder::logits>, nb::rv_policy::move);
}
