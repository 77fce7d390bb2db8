// The Python door of the core, and the only place that distrusts its caller.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "rwkv/vocabulary.h"

namespace nb = nanobind;

namespace {

// Bytes objects, one per id; refuses anything else.
std::vector<std::string> byte_strings(const nb::sequence& items, const char* what) {
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

void init_vocabulary(rwkv::Vocabulary* self, const nb::sequence& token_bytes) {
    new (self) rwkv::Vocabulary(byte_strings(token_bytes, "The tokens of a vocabulary"));
}

std::vector<std::uint32_t> encode(const rwkv::Vocabulary& self, const nb::bytes& data) {
    try {
        const std::string_view view(data.c_str(), data.size());
        nb::gil_scoped_release unlocked;
        return self.encode(view);
    } catch (const rwkv::UncoveredByte& error) {
        throw nb::value_error(("No token covers byte " + std::to_string(error.value) +
                               " at position " + std::to_string(error.position) + ".")
                                  .c_str());
    }
}

nb::bytes decode(const rwkv::Vocabulary& self, const std::vector<std::int64_t>& ids) {
    std::string text;
    for (const std::int64_t id : ids) {
        if (id < 0 || static_cast<std::uint64_t>(id) >= self.size()) {
            throw nb::index_error(("Token id " + std::to_string(id) + " is outside the vocabulary of " +
                                   std::to_string(self.size()) + ".")
                                      .c_str());
        }
        text += self.bytes(static_cast<std::uint32_t>(id));
    }
    return nb::bytes(text.data(), text.size());
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "The compiled core.";
    nb::class_<rwkv::Vocabulary>(module, "Vocabulary")
        .def("__init__", &init_vocabulary, nb::arg("token_bytes"))
        .def("__len__", &rwkv::Vocabulary::size)
        .def("encode", &encode, nb::arg("data"))
        .def("decode", &decode, nb::arg("ids"));
}
