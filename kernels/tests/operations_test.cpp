// Every operation of an instruction set against float64, within the bounds of kernels.h.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <utility>

#include "../src/rounding.h"
#include "check.h"

namespace rwkv::test {
namespace {

constexpr double kE = 0x1p-24;

std::size_t odd_size(Random& random) {
    static const std::size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257};
    return sizes[random.below(std::size(sizes))];
}

// What matmul makes of n activations for q4 weights.
std::vector<float> rounded_q4(const float* x, std::size_t n) {
    constexpr int kBits = 13;
    double largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(double(x[i])));
    const double unit = std::ldexp(1, largest > 0 ? std::max(std::ilogb(largest) - kBits, -126) : -126);
    std::vector<float> result(n);
    for (std::size_t i = 0; i < n; ++i) result[i] = static_cast<float>(std::nearbyint(x[i] / unit) * unit);
    return result;
}

// What becomes of n activations where they meet weights of this type.
std::vector<float> rounded(Weights weights, const float* x, std::size_t n) {
    if (weights == Weights::q4) return rounded_q4(x, n);
    std::vector<float> result(x, x + n);
    for (std::size_t begin = 0; begin < n; begin += kFine) {
        const std::size_t end = std::min(begin + kFine, n);
        float largest = 0;
        for (std::size_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
        const float unit = largest / 127.0f;
        for (std::size_t i = begin; i < end; ++i) {
            if (weights == Weights::bf16) result[i] = round_bf16(x[i]);
            if (weights != Weights::q8 && weights != Weights::q8_rows) continue;
            result[i] = largest < 0x1p-100f ? 0 : std::nearbyint(x[i] * (127.0f / largest)) * unit;
            CHECK(std::fabs(result[i] - x[i]) <= 0.501 * unit + 0x1p-100, "%g", x[i]);
        }
    }
    return result;
}

// Rounded activations of some tokens, in a heap block of their own.
class Activations {
public:
    Activations(const Kernels& kernels, Weights weights, const std::vector<float>& x,
                std::size_t columns)
        : stride_(rounded_bytes(weights, columns)),
          data_(static_cast<unsigned char*>(std::aligned_alloc(64, x.size() / columns * stride_))) {
        for (std::size_t t = 0; t < x.size() / columns; ++t) {
            kernels.round(weights, &x[t * columns], columns, data_.get() + t * stride_);
        }
    }
    const unsigned char* of(std::size_t token) const { return data_.get() + token * stride_; }

private:
    struct Free {
        void operator()(unsigned char* p) const { std::free(p); }
    };
    std::size_t stride_;
    std::unique_ptr<unsigned char[], Free> data_;
};

void test_matmul(const Kernels& kernels, Random& random) {
    const std::size_t rows = random.between(1, 37);
    const std::size_t columns = random.below(20) == 0 ? random.between(4000, 4300) : odd_size(random);
    const std::size_t tokens = random.below(20) == 0 ? random.between(90, 130) : random.between(1, 15);
    const bool wild = random.below(2) == 0;
    const OwnedMatrix w(random.floats(rows * columns, wild), rows, columns, random.weights(false),
                        random.below(4));
    const Weights weights = w.get().weights;
    const std::vector<float> x = random.floats(tokens * columns, wild);
    const Activations inputs(kernels, weights, x, columns);
    const std::size_t first = random.below(rows);
    const std::size_t last = random.between(first + 1, rows);
    constexpr float kUntouched = 123;
    std::vector<float> y(tokens * rows, kUntouched);
    kernels.matmul(w.get(), first, last, inputs.of(0), tokens, y.data(), rows);
    for (std::size_t t = 0; t < tokens; ++t) {
        const std::vector<float> own = rounded(weights, &x[t * columns], columns);
        std::vector<float> alone(rows, kUntouched);
        kernels.matmul(w.get(), first, last, inputs.of(t), 1, alone.data(), rows);
        CHECK(std::memcmp(alone.data(), &y[t * rows], rows * sizeof(float)) == 0,
              "%s: the number of tokens changes the sums", kernels.name);
        for (std::size_t row = 0; row < rows; ++row) {
            const float result = y[t * rows + row];
            if (row < first || row >= last) {
                CHECK(result == kUntouched, "row %zu is outside", row);
                continue;
            }
            double sum = 0;
            double magnitude = 0;
            double least = 1e-44;
            for (std::size_t j = 0; j < columns; ++j) {
                sum += w.at(row, j) * own[j];
                magnitude += w.magnitude(row, j) * std::fabs(own[j]);
                if (weights == Weights::bf16) {
                    least += 0x1p-126 * (1 + std::fabs(w.at(row, j)) + std::fabs(own[j]));
                }
            }
            const double bound = (static_cast<double>(columns) + 2) * kE * magnitude + least;
            CHECK(std::fabs(result - sum) <= bound, "%s: %g is not %g", kernels.name, result, sum);
            std::vector<float> single(rows);
            kernels.matmul(w.get(), row, row + 1, inputs.of(t), 1, single.data(), rows);
            CHECK(std::memcmp(&single[row], &result, sizeof result) == 0, "%s: the tile changes the sum",
                  kernels.name);
        }
    }
}

// What rounding activations times scales to 16 bits may add to the sum of a part of q4 rows.
double most_rounded(const Matrix& matrix, const float* x, std::size_t begin, std::size_t end,
                    std::size_t c) {
    double largest = 0;
    double numbers = 0;
    for (std::size_t row = begin; row < end; ++row) {
        const WeightQ4 weight = load_q4(matrix, row, c);
        largest = std::max(largest, std::fabs(double(weight.scale) * x[row]));
        numbers += x[row] == 0 ? 0 : weight.number;
    }
    return 0x1p-14 * largest * numbers;
}

// The sum of w.at(row, c) * x[row] over a part of the rows, and of the magnitudes.
void add_part(const OwnedMatrix& w, const float* x, std::size_t begin, std::size_t end, std::size_t c,
              double& sum, double& magnitude) {
    const Matrix& matrix = w.get();
    const bool q8 = matrix.weights == Weights::q8_rows;
    std::vector<float> values(x + begin, x + end);
    for (std::size_t row = begin; row < end && q8; ++row) {
        values[row - begin] *= load_scale(scales_of(matrix, row), c / kGroup);
    }
    values = rounded(matrix.weights, values.data(), values.size());
    for (std::size_t row = begin; row < end; ++row) {
        const double weight = q8 ? load_q8(row_of(matrix, row), c) : w.at(row, c);
        const double size = q8 ? std::fabs(weight) : w.magnitude(row, c);
        sum += weight * values[row - begin];
        magnitude += size * std::fabs(values[row - begin]);
    }
}

void test_sum_rows(const Kernels& kernels, Random& random) {
    const std::size_t rows = random.between(1, kPart);
    const std::size_t columns = random.below(3) == 0 ? random.between(700, 2500) : odd_size(random);
    const std::size_t following = random.below(2) == 0 ? 0 : random.between(1, 40);  // of the next part
    const std::size_t all = following > 0 ? kPart + following : rows;
    const OwnedMatrix w(random.floats(all * columns), all, columns, random.weights(true),
                        random.below(4));
    std::vector<float> x = random.floats(rows);
    std::vector<std::uint32_t> active;
    const bool sparse = random.below(2) == 0;
    for (std::uint32_t row = 0; row < rows; ++row) {
        if (random.below(sparse ? 10 : 2) == 0) {
            active.push_back(row);
        } else {
            x[row] = 0;
        }
    }
    const std::vector<float> start = random.floats(columns);
    std::vector<float> y = start;
    kernels.sum_rows(w.get(), active.data(), active.size(), 0, x.data(), 0, columns, y.data());
    for (std::size_t c = 0; c < columns; ++c) {
        double sum = 0;
        double magnitude = 0;
        add_part(w, x.data(), 0, rows, c, sum, magnitude);
        double bound = (static_cast<double>(rows) + 4) * kE * magnitude;
        if (w.get().weights == Weights::q4_rows) bound += most_rounded(w.get(), x.data(), 0, rows, c);
        CHECK(std::fabs(y[c] - sum) <= bound, "%s: %g is not %g", kernels.name, y[c], sum);
    }
    std::vector<float> split = start;
    std::vector<std::uint32_t> more_rows = active;
    for (std::size_t row = kPart; row < kPart + following; ++row) {
        more_rows.push_back(static_cast<std::uint32_t>(row));
    }
    for (std::size_t c = 0; c < columns;) {
        const std::size_t end = std::min(columns, c + kGroup * random.between(1, 3));
        kernels.sum_rows(w.get(), more_rows.data(), active.size(), following,
                         x.data(), c, end, split.data());
        c = end;
    }
    CHECK(std::memcmp(split.data(), y.data(), columns * sizeof(float)) == 0,
          "%s: the split changes the sums", kernels.name);
}

void test_sum_all_rows(const Kernels& kernels, Random& random) {
    const std::size_t rows = random.between(1, 400);
    const std::size_t columns = odd_size(random);
    const std::size_t tokens = random.below(10) == 0 ? kMaxSummed : random.between(1, 15);
    const OwnedMatrix w(random.floats(rows * columns), rows, columns, random.weights(true),
                        random.below(4));
    std::vector<float> x = random.floats(tokens * rows);
    for (float& value : x) value = random.below(2) == 0 ? 0 : value;
    const std::size_t first = random.below(groups_of(columns)) * kGroup;
    const std::size_t last = std::min(first + kGroup, columns);
    constexpr float kUntouched = 123;
    std::vector<float> y(tokens * columns, kUntouched);
    kernels.sum_all_rows(w.get(), x.data(), rows, tokens, first, last, y.data(), columns);
    for (std::size_t t = 0; t < tokens; ++t) {
        std::vector<float> expected(columns, 0), part(columns);
        for (std::size_t begin = 0; begin < rows; begin += kPart) {
            std::vector<std::uint32_t> active;
            for (std::size_t row = begin; row < std::min(begin + kPart, rows); ++row) {
                if (x[t * rows + row] != 0) active.push_back(static_cast<std::uint32_t>(row));
            }
            kernels.sum_rows(w.get(), active.data(), active.size(), 0, &x[t * rows], first, last,
                             part.data());
            for (std::size_t c = first; c < last; ++c) expected[c] += part[c];
        }
        for (std::size_t c = 0; c < columns; ++c) {
            const float wanted = c < first || c >= last ? kUntouched : expected[c];
            CHECK(y[t * columns + c] == wanted, "%s: column %zu: %g is not %g", kernels.name, c,
                  y[t * columns + c], wanted);
        }
    }
}

void test_bad_activations(const Kernels& kernels, Random& random) {
    const std::size_t columns = odd_size(random);
    const std::size_t tokens = random.between(2, 7);
    const std::size_t rows = 5;
    const Weights weights = random.below(2) == 0 ? Weights::q8 : Weights::q4;
    const OwnedMatrix w(random.floats(rows * columns), rows, columns, weights, 0);
    std::vector<float> x = random.floats(tokens * columns);
    const std::size_t bad = random.below(tokens);
    static const float values[] = {std::numeric_limits<float>::quiet_NaN(),
                                   std::numeric_limits<float>::infinity(),
                                   -std::numeric_limits<float>::infinity()};
    x[bad * columns + random.below(columns)] = values[random.below(3)];
    std::vector<float> y(tokens * rows);
    const Activations inputs(kernels, weights, x, columns);
    kernels.matmul(w.get(), 0, rows, inputs.of(0), tokens, y.data(), rows);
    for (std::size_t i = 0; i < y.size(); ++i) {
        CHECK(std::isnan(y[i]) == (i / rows == bad), "%s: %g", kernels.name, y[i]);
    }
}

void test_layer_norm(const Kernels& kernels, Random& random) {
    const std::size_t n = odd_size(random);
    std::vector<float> x = random.floats(n);
    const std::size_t kind = random.below(3);
    for (float& value : x) value = kind == 0 ? 3.0f : value * (kind == 1 ? 1e-6f : 1e6f);
    const std::vector<float> weight = random.floats(n);
    const std::vector<float> bias = random.floats(n);
    constexpr float kEps = 1e-5f;
    double mean = 0;
    double variance = 0;
    double largest = 0;
    for (const float value : x) mean += value;
    mean /= static_cast<double>(n);
    for (const float value : x) {
        variance += (value - mean) * (value - mean);
        largest = std::max(largest, std::fabs(static_cast<double>(value)));
    }
    const double scale = 1 / std::sqrt(variance / static_cast<double>(n) + kEps);
    std::vector<float> y(n);
    kernels.layer_norm(x.data(), weight.data(), bias.data(), n, kEps, y.data());
    for (std::size_t i = 0; i < n; ++i) {
        const double truth = (x[i] - mean) * scale * weight[i] + bias[i];
        const double size = std::fabs(weight[i]) * largest * scale + std::fabs(bias[i]);
        const double bound = (static_cast<double>(n) / 8 + 16) * kE * size;
        CHECK(std::fabs(y[i] - truth) <= bound, "%s: %g is not %g", kernels.name, y[i], truth);
    }
    kernels.layer_norm(x.data(), weight.data(), bias.data(), n, kEps, x.data());
    CHECK(x == y, "%s: in place it differs", kernels.name);
}

void test_token_shift(const Kernels& kernels, Random& random) {
    const std::size_t n = odd_size(random);
    const std::vector<float> x = random.floats(n);
    const std::vector<float> previous = random.floats(n);
    std::vector<float> mix = random.floats(n);
    for (float& value : mix) value = std::fabs(value);
    std::vector<float> y(n);
    kernels.token_shift(x.data(), previous.data(), mix.data(), n, y.data());
    for (std::size_t i = 0; i < n; ++i) {
        const double truth = x[i] + (static_cast<double>(previous[i]) - x[i]) * mix[i];
        const double bound = 4 * kE * (std::fabs(x[i]) + std::fabs(previous[i]));
        CHECK(std::fabs(y[i] - truth) <= bound, "%s: %g is not %g", kernels.name, y[i], truth);
    }
}

void test_curves(const Kernels& kernels, Random& random) {
    const std::size_t n = odd_size(random);
    std::vector<float> x = random.floats(n);
    for (float& value : x) value *= random.below(4) == 0 ? 1e30f : 110.0f;
    const std::vector<float> bias = random.floats(n);
    std::vector<float> sigmoid = x;
    std::vector<float> decay6 = x;
    std::vector<float> decay7 = x;
    kernels.sigmoid(sigmoid.data(), bias.data(), n);
    kernels.decay6(decay6.data(), bias.data(), n);
    kernels.decay7(decay7.data(), bias.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
        const double sum = x[i] + bias[i];
        const double s = 1 / (1 + std::exp(-sum));
        const double d6 = std::exp(-std::exp(sum));
        const double d7 = std::exp(-std::exp(-0.5) * s);
        // The float sum x + bias may be half a unit off, which matters where the curve is steep.
        const double slope = 1e-6 + std::fabs(sum) * kE;
        CHECK(std::fabs(sigmoid[i] - s) <= slope * s + 1e-37, "%s: sigmoid(%g) = %g, not %g",
              kernels.name, sum, sigmoid[i], s);
        const double steep = sum < 100 ? slope * (1 + std::exp(sum)) * d6 : 0;
        CHECK(std::fabs(decay6[i] - d6) <= steep + 1e-37, "%s: decay6(%g) = %g, not %g", kernels.name,
              sum, decay6[i], d6);
        CHECK(std::fabs(decay7[i] - d7) <= slope * d7, "%s: decay7(%g) = %g, not %g", kernels.name, sum,
              decay7[i], d7);
    }
    const float zero = 0;
    for (const auto curve : {kernels.sigmoid, kernels.decay6, kernels.decay7}) {
        float nan = std::numeric_limits<float>::quiet_NaN();
        curve(&nan, &zero, 1);
        CHECK(std::isnan(nan), "%s: a curve loses a NaN", kernels.name);
    }
}

void test_wkv4(const Kernels& kernels, Random& random) {
    const std::size_t n = odd_size(random);
    std::vector<float> k = random.floats(n), decay = random.floats(n), exponent = random.floats(n);
    const std::vector<float> v = random.floats(n), first = random.floats(n), top = random.floats(n);
    std::vector<float> bottom = random.floats(n);
    for (std::size_t i = 0; i < n; ++i) {
        if (random.below(2) == 0) k[i] *= 100;
        decay[i] = -std::exp(3 * decay[i]);
        bottom[i] = 1 + std::fabs(bottom[i]);
        exponent[i] = random.below(3) == 0 ? -1e30f : 50 * exponent[i];
    }
    std::vector<float> new_top = top, new_bottom = bottom, new_exponent = exponent, y(n);
    kernels.wkv4({n, k.data(), v.data(), decay.data(), first.data()}, new_top.data(),
                 new_bottom.data(), new_exponent.data(), y.data());
    // A sum of two weighted values, and what it may be off by. The exponents may be off by the
    // rounding of a float32 sum.
    struct Sum {
        double value, bound;
    };
    const auto sum = [](double past, double now, double scale, double a, double b) {
        const double unit = 2e-6 + (std::min(std::fabs(past), 100.0) + std::fabs(now)) * 4 * kE;
        const double left = std::exp(past - scale) * a, right = std::exp(now - scale) * b;
        return Sum{left + right, unit * (std::fabs(left) + std::fabs(right)) +
                                     1e-37 * (std::fabs(a) + std::fabs(b))};
    };
    for (std::size_t i = 0; i < n; ++i) {
        const double bonus = static_cast<double>(first[i]) + k[i];
        const double high = std::max<double>(bonus, exponent[i]);
        const Sum above = sum(exponent[i], bonus, high, top[i], v[i]);
        const Sum below = sum(exponent[i], bonus, high, bottom[i], 1);
        const double bound =
            (above.bound + std::fabs(above.value) / below.value * below.bound) / below.value;
        CHECK(std::fabs(y[i] - above.value / below.value) <= 1.1 * bound, "%s: %g is not %g",
              kernels.name, y[i], above.value / below.value);
        const double aged = static_cast<double>(exponent[i]) + decay[i];
        const double scale = new_exponent[i];
        CHECK(std::fabs(scale - std::max<double>(aged, k[i])) <= 2 * kE * std::fabs(scale),
              "%s: the exponent %g", kernels.name, scale);
        const Sum new_above = sum(aged, k[i], scale, top[i], v[i]);
        const Sum new_below = sum(aged, k[i], scale, bottom[i], 1);
        CHECK(std::fabs(new_top[i] - new_above.value) <= new_above.bound, "%s: %g is not %g",
              kernels.name, new_top[i], new_above.value);
        CHECK(std::fabs(new_bottom[i] - new_below.value) <= new_below.bound, "%s: %g is not %g",
              kernels.name, new_bottom[i], new_below.value);
    }
    // A NaN in any of the inputs of a channel reaches its y, and one in the state stays there.
    for (std::vector<float>* part : {&k, &exponent}) {
        const std::size_t i = random.below(n);
        const float kept = std::exchange((*part)[i], std::numeric_limits<float>::quiet_NaN());
        new_top = top, new_bottom = bottom, new_exponent = exponent;
        kernels.wkv4({n, k.data(), v.data(), decay.data(), first.data()}, new_top.data(),
                     new_bottom.data(), new_exponent.data(), y.data());
        CHECK(std::isnan(y[i]) && std::isnan(new_top[i]), "%s: wkv4 loses a NaN", kernels.name);
        (*part)[i] = kept;
    }
}

void test_wkv5(const Kernels& kernels, Random& random) {
    static const std::size_t sizes[] = {1, 3, 4, 7, 8, 10, 16, 24, 32, 33, 64, 100, 128};
    const std::size_t n = sizes[random.below(std::size(sizes))];
    std::vector<float> w = random.floats(n);
    for (float& value : w) value = std::fabs(value);
    const std::vector<float> r = random.floats(n), k = random.floats(n), v = random.floats(n),
                             first = random.floats(n);
    const std::vector<float> start = random.floats(n * n);
    std::vector<float> state = start;
    std::vector<float> y(n);
    kernels.wkv5({n, r.data(), w.data(), k.data(), v.data(), first.data()}, state.data(), y.data());
    const double unit = (static_cast<double>(n) + 8) * kE;
    for (std::size_t j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const double old = start[i * n + j];
            const double added = static_cast<double>(k[i]) * v[j];
            sum += r[i] * (first[i] * added + old);
            size += std::fabs(r[i] * first[i] * added) + std::fabs(r[i] * old);
            const double truth = old * w[i] + added;
            const double most = std::fabs(old * w[i]) + std::fabs(added);
            CHECK(std::fabs(state[i * n + j] - truth) <= unit * most, "%s: %g is not %g", kernels.name,
                  state[i * n + j], truth);
        }
        CHECK(std::fabs(y[j] - sum) <= unit * size, "%s: %g is not %g", kernels.name, y[j], sum);
    }
}

void test_wkv7(const Kernels& kernels, Random& random) {
    static const std::size_t sizes[] = {1, 3, 4, 7, 10, 16, 24, 33, 64};
    const std::size_t n = sizes[random.below(std::size(sizes))];
    std::vector<float> w = random.floats(n);
    for (float& value : w) value = 0.5f + 0.5f * std::fabs(value);
    const std::vector<float> r = random.floats(n), k = random.floats(n), v = random.floats(n),
                             kk = random.floats(n), kk_a = random.floats(n);
    const std::vector<float> start = random.floats(n * n);
    std::vector<float> state = start;
    std::vector<float> y(n);
    kernels.wkv7({n, r.data(), w.data(), k.data(), v.data(), kk.data(), kk_a.data()}, state.data(),
                 y.data());
    const double unit = (static_cast<double>(n) + 8) * kE;
    for (std::size_t i = 0; i < n; ++i) {
        double removed = 0, removed_size = 0, sum = 0, sum_size = 0;
        for (std::size_t j = 0; j < n; ++j) {
            const double product = static_cast<double>(start[i * n + j]) * kk[j];
            removed -= product;
            removed_size += std::fabs(product);
        }
        for (std::size_t j = 0; j < n; ++j) {
            const double kept = static_cast<double>(start[i * n + j]) * w[j];
            const double added = static_cast<double>(v[i]) * k[j];
            const double truth = kept + removed * kk_a[j] + added;
            const double size =
                std::fabs(kept) + removed_size * std::fabs(kk_a[j]) + std::fabs(added);
            const float result = state[i * n + j];
            CHECK(std::fabs(result - truth) <= unit * size, "%s: %g is not %g", kernels.name, result,
                  truth);
            sum += truth * r[j];
            sum_size += size * std::fabs(r[j]);
        }
        CHECK(std::fabs(y[i] - sum) <= 2 * unit * sum_size, "%s: %g is not %g", kernels.name, y[i],
              sum);
    }
}

void test_sampling(const Kernels& kernels, Random& random) {
    const std::size_t n = odd_size(random);
    std::vector<float> x(n);
    for (float& value : x) {
        value = random.below(9) == 0 ? -INFINITY : static_cast<float>(random.uniform(-99, 5));
    }
    x[random.below(n)] = static_cast<float>(random.uniform(4, 5));
    const float maximum = kernels.largest(x.data(), n);
    CHECK(maximum == *std::max_element(x.begin(), x.end()), "%s: largest %g", kernels.name, maximum);

    const float scale = random.below(2) == 0 ? 1.0f : static_cast<float>(random.uniform(0.01, 5));
    std::vector<float> weights(n);
    const double whole = kernels.weigh(x.data(), n, maximum, scale, weights.data());
    double total = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const double exponent = (static_cast<double>(x[i]) - maximum) * scale;
        const double truth = std::exp(exponent);
        const double bound = (4 + 2 * std::min(std::fabs(exponent), 1e3)) * kE * truth + 2e-38;
        CHECK(std::fabs(weights[i] - truth) <= bound, "%s: exp(%g) = %g, not %g", kernels.name,
              exponent, weights[i], truth);
        CHECK(x[i] != -INFINITY || weights[i] == 0, "%s: -infinity weighs %g", kernels.name,
              weights[i]);
        total += weights[i];
    }

    CHECK(std::fabs(whole - total) <= (static_cast<double>(n) + 4) * 0x1p-53 * total,
          "%s: whole %g not %g", kernels.name, whole, total);

    const float least = weights[random.below(n)];
    const float end = random.below(2) == 0 ? INFINITY : weights[random.below(n)];
    double sum = 0;
    std::size_t count = 0;
    std::vector<float> expected;
    std::vector<std::uint32_t> places;
    for (std::size_t i = 0; i < n; ++i) {
        if (weights[i] < least) continue;
        sum += weights[i];
        ++count;
        if (weights[i] >= end) continue;
        expected.push_back(weights[i]);
        places.push_back(static_cast<std::uint32_t>(i));
    }
    const Mass mass = kernels.mass_from(weights.data(), n, least);
    CHECK(mass.count == count, "%s: %zu not %zu", kernels.name, mass.count, count);
    CHECK(std::fabs(mass.sum - sum) <= (static_cast<double>(n) + 4) * 0x1p-53 * sum,
          "%s: sum %g not %g", kernels.name, mass.sum, sum);

    std::vector<float> kept(n + kRoom);
    std::vector<std::uint32_t> ids(n + kRoom);
    std::size_t size =
        kernels.keep_between(weights.data(), nullptr, n, least, end, kept.data(), ids.data());
    CHECK(size == expected.size(), "%s: kept %zu", kernels.name, size);
    for (int again = 0; again < 2; ++again) {  // the second time in place, with ids
        for (std::size_t i = 0; i < size; ++i) {
            CHECK(kept[i] == expected[i] && ids[i] == places[i], "%s: %zu", kernels.name, i);
        }
        size = kernels.keep_between(kept.data(), ids.data(), size, least, end, kept.data(), ids.data());
        CHECK(size == expected.size(), "%s: kept %zu", kernels.name, size);
    }
}

}  // namespace

void test_operations(const Kernels& kernels) {
    Random random(1);
    for (int round = 0; round < 150; ++round) {
        test_matmul(kernels, random);
        test_sum_rows(kernels, random);
        test_sum_all_rows(kernels, random);
        test_bad_activations(kernels, random);
        test_layer_norm(kernels, random);
        test_token_shift(kernels, random);
        test_curves(kernels, random);
        test_wkv4(kernels, random);
        test_wkv5(kernels, random);
        test_wkv7(kernels, random);
        test_sampling(kernels, random);
    }
}

}  // namespace rwkv::test
