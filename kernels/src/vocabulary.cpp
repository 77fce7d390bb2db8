#include "rwkv/vocabulary.h"

#include <stdexcept>

namespace rwkv {
namespace {

constexpr std::uint32_t kNone = 0xFFFFFFFFu;
constexpr std::size_t kMaxTokens = std::size_t{1} << 24;
constexpr std::size_t kMaxBytes = std::size_t{1} << 28;
constexpr std::size_t kMaxNodes = std::size_t{1} << 24;  // a key holds 24 bits of node

}  // namespace

Vocabulary::Vocabulary(const std::vector<std::string>& token_bytes) {
    if (token_bytes.empty() || token_bytes.size() > kMaxTokens) {
        throw std::invalid_argument("A vocabulary must have between 1 and " +
                                    std::to_string(kMaxTokens) + " tokens, not " +
                                    std::to_string(token_bytes.size()) + ".");
    }
    std::size_t total = 0;
    for (const std::string& token : token_bytes) {
        total += token.size();
        if (total > kMaxBytes) {
            throw std::invalid_argument("The tokens of a vocabulary must not have more than " +
                                        std::to_string(kMaxBytes) + " bytes in all.");
        }
    }
    text_.reserve(total);
    starts_.reserve(token_bytes.size() + 1);
    starts_.push_back(0);
    edges_.assign(1024, Edge{0, 0});
    ids_.assign(1, kNone);
    for (std::size_t id = 0; id < token_bytes.size(); ++id) {
        const std::string& token = token_bytes[id];
        text_ += token;
        starts_.push_back(static_cast<std::uint32_t>(text_.size()));
        if (token.empty()) continue;
        std::uint32_t node = 0;
        for (const char c : token) node = add_child(node, static_cast<std::uint8_t>(c));
        if (ids_[node] == kNone) ids_[node] = static_cast<std::uint32_t>(id);
    }
}

std::size_t Vocabulary::find_slot(std::uint32_t key) const {
    const std::size_t mask = edges_.size() - 1;
    std::size_t slot = (key * std::uint64_t{0x9E3779B97F4A7C15}) >> 32 & mask;
    while (edges_[slot].child != 0 && edges_[slot].key != key) slot = (slot + 1) & mask;
    return slot;
}

std::uint32_t Vocabulary::find_child(std::uint32_t node, std::uint8_t byte) const {
    return edges_[find_slot(node << 8 | byte)].child;
}

std::uint32_t Vocabulary::add_child(std::uint32_t node, std::uint8_t byte) {
    const std::uint32_t key = node << 8 | byte;
    const std::size_t slot = find_slot(key);
    if (edges_[slot].child != 0) return edges_[slot].child;
    if (ids_.size() >= kMaxNodes) {
        throw std::invalid_argument("The tokens of the vocabulary have too many different prefixes.");
    }
    const auto child = static_cast<std::uint32_t>(ids_.size());
    edges_[slot] = Edge{key, child};
    ids_.push_back(kNone);
    if (ids_.size() * 2 > edges_.size()) grow();
    return child;
}

void Vocabulary::grow() {
    std::vector<Edge> old(edges_.size() * 2, Edge{0, 0});
    old.swap(edges_);
    for (const Edge& edge : old) {
        if (edge.child != 0) edges_[find_slot(edge.key)] = edge;
    }
}

std::vector<std::uint32_t> Vocabulary::encode(std::string_view data) const {
    std::vector<std::uint32_t> ids;
    ids.reserve(data.size() / 3 + 1);
    std::size_t position = 0;
    while (position < data.size()) {
        std::uint32_t node = 0;
        std::uint32_t longest = kNone;
        std::size_t end = position;
        for (std::size_t i = position; i < data.size(); ++i) {
            node = find_child(node, static_cast<std::uint8_t>(data[i]));
            if (node == 0) break;
            if (ids_[node] != kNone) {
                longest = ids_[node];
                end = i + 1;
            }
        }
        if (longest == kNone) {
            throw UncoveredByte{position, static_cast<std::uint8_t>(data[position])};
        }
        ids.push_back(longest);
        position = end;
    }
    return ids;
}

}  // namespace rwkv
