// The bytes of every token id, and greedy longest match over bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

// A byte that no token starts with at this place of the text.
struct UncoveredByte {
    std::size_t position;
    std::uint8_t value;
};

class Vocabulary {
public:
    // token_bytes[i] are the bytes of id i, empty for an id that never stands for text. Of two ids
    // with the same bytes, encode gives the lower one.
    // Throws std::invalid_argument: no tokens, more than 2^24, or more than 2^28 bytes in all.
    explicit Vocabulary(const std::vector<std::string>& token_bytes);

    std::size_t size() const { return starts_.size() - 1; }

    // Whether any id stands for text.
    bool has_text() const { return !text_.empty(); }

    // The bytes of `id`, which must be below size().
    std::string_view bytes(std::uint32_t id) const {
        return {text_.data() + starts_[id], starts_[id + 1] - starts_[id]};
    }

    // Throws UncoveredByte.
    std::vector<std::uint32_t> encode(std::string_view data) const;

private:
    struct Edge {
        std::uint32_t key;  // parent node << 8 | byte; the root is node 0 and no child of any
        std::uint32_t child;  // 0: the slot is free
    };

    std::size_t find_slot(std::uint32_t key) const;
    std::uint32_t find_child(std::uint32_t node, std::uint8_t byte) const;
    std::uint32_t add_child(std::uint32_t node, std::uint8_t byte);
    void grow();

    std::string text_;                   // all tokens, one after the other
    std::vector<std::uint32_t> starts_;  // [size + 1]
    std::vector<Edge> edges_;            // open addressing, a power of two of slots
    std::vector<std::uint32_t> ids_;     // [nodes]: the id that ends here, or kNone
};

}  // namespace rwkv
