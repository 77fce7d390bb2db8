// What training on a CPU does per element between its matrix products, each in one pass over the
// memory. Plain C ABI; float32 except where a name says bf16.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "share.h"

namespace {

constexpr int kLanes = 16;

typedef float Lane __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint16_t HalvesAt __attribute__((vector_size(2 * kLanes), aligned(2)));

struct bf16 {
  uint16_t bits;
};

inline Lane load(const float* p) { return *reinterpret_cast<const Floats*>(p); }

inline Lane load(const bf16* p) {
  const Halves narrow = *reinterpret_cast<const HalvesAt*>(p);
  return reinterpret_cast<Lane>(__builtin_convertvector(narrow, Bits) << 16);
}

inline void store(float* p, Lane x) { *reinterpret_cast<Floats*>(p) = x; }

// Rounds to the nearest, ties to even; x is finite.
inline void store(bf16* p, Lane x) {
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<HalvesAt*>(p) = __builtin_convertvector(rounded, Halves);
}

inline float sum(Lane x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// e^x for x <= 0, to 2e-7 of the result.
inline Lane exponential(Lane x) {
  x = x < -87.0f ? Lane{} - 87.0f : x;
  const Lane shifted = x * 1.44269504f + 12582912.0f;  // the nearest integer, in the low bits
  const Lane n = shifted - 12582912.0f;
  const Lane r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lane p = r * 1.9875691e-4f + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<Lane>(exponent);
}

// The loss of one row; its logits become their gradient.
template <typename T>
double lose(int64_t size, T* logits, int64_t target, float weight) {
  const int64_t whole = size / kLanes * kLanes;
  // The rest of a row, padded with what counts nothing.
  T rest[kLanes];
  const auto padded = [&] {
    const Lane least = Lane{} - 3e38f;
    store(rest, least);
    std::memcpy(rest, logits + whole, (size - whole) * sizeof(T));
    return load(rest);
  };
  Lane highest = padded();
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Lane x = load(logits + i);
    highest = x > highest ? x : highest;
  }
  float top = highest[0];
  for (int i = 1; i < kLanes; ++i) top = std::max(top, highest[i]);
  Lane parts = exponential(padded() - top);
  for (int64_t i = 0; i < whole; i += kLanes) parts += exponential(load(logits + i) - top);
  const float norm = top + __builtin_logf(sum(parts));
  T at = logits[target];
  T one[kLanes] = {at};
  const float chosen = load(one)[0];
  for (int64_t i = 0; i < whole; i += kLanes) {
    store(logits + i, exponential(load(logits + i) - norm) * weight);
  }
  store(rest, exponential(padded() - norm) * weight);
  std::memcpy(logits + whole, rest, (size - whole) * sizeof(T));
  store(one, exponential(Lane{} + chosen - norm) * weight - weight);
  logits[target] = one[0];
  return static_cast<double>(norm - chosen) * weight;
}

template <typename T>
double lose_all(int64_t rows, int64_t size, T* logits, const int64_t* targets,
                const float* weights, int threads) {
  std::vector<double> losses(rows);
  share(rows, threads, [&](int64_t row) {
    losses[row] = lose(size, logits + row * size, targets[row], weights[row]);
  });
  double total = 0;
  for (const double loss : losses) total += loss;
  return total;
}

// Steps of one row that one thread takes at a time.
constexpr int64_t kBlock = 64;

struct Mixing {
  int64_t batch, steps, width, count;
  const float* x;               // [B, T, D]
  const float* const* weights;  // `count` of [D]

  int64_t blocks() const { return (steps + kBlock - 1) / kBlock; }
  // Calls run(token, begins, ends) for the tokens of a job; whether the token begins or ends its row.
  template <typename F>
  void tokens(int64_t job, F run) const {
    const int64_t row = job / blocks(), from = job % blocks() * kBlock;
    const int64_t to = std::min(steps, from + kBlock);
    for (int64_t t = from; t < to; ++t) run(row * steps + t, t == 0, t == steps - 1);
  }
};

// out_i = x_t + (x_(t-1) - x_t) weight_i, where the token before the first is 0.
template <typename T>
void mix(const Mixing& m, void* const* out, int threads) {
  share(m.batch * m.blocks(), threads, [&](int64_t job) {
    m.tokens(job, [&](int64_t t, bool begins, bool) {
      const float* now = m.x + t * m.width;
      for (int64_t c = 0; c < m.width; c += kLanes) {
        const Lane x = load(now + c);
        const Lane delta = (begins ? Lane{} : load(now - m.width + c)) - x;
        for (int64_t i = 0; i < m.count; ++i) {
          store(static_cast<T*>(out[i]) + t * m.width + c, x + delta * load(m.weights[i] + c));
        }
      }
    });
  });
}

template <typename T>
void unmix(const Mixing& m, const void* const* dout, float* dx, float* dweights, int threads) {
  const int64_t jobs = m.batch * m.blocks(), size = m.count * m.width;
  std::vector<float> partial(jobs * size);
  share(jobs, threads, [&](int64_t job) {
    float* mine = partial.data() + job * size;
    m.tokens(job, [&](int64_t t, bool begins, bool ends) {
      const int64_t at = t * m.width;
      for (int64_t c = 0; c < m.width; c += kLanes) {
        const Lane x = load(m.x + at + c);
        const Lane delta = (begins ? Lane{} : load(m.x + at - m.width + c)) - x;
        Lane d = {};
        for (int64_t i = 0; i < m.count; ++i) {
          const T* from = static_cast<const T*>(dout[i]) + at + c;
          const Lane weight = load(m.weights[i] + c), now = load(from);
          d += now - now * weight;
          if (!ends) d += load(from + m.width) * weight;
          float* total = mine + i * m.width + c;
          store(total, load(total) + now * delta);
        }
        store(dx + at + c, d);
      }
    });
  });
  std::fill(dweights, dweights + size, 0.0f);
  for (int64_t job = 0; job < jobs; ++job) {
    for (int64_t i = 0; i < size; ++i) dweights[i] += partial[job * size + i];
  }
}

}  // namespace

extern "C" {

// The weighted sum of the cross entropies of `rows` rows of `size` logits, whose gradient takes
// their place.
double cross_entropy_bf16(int64_t rows, int64_t size, void* logits, const int64_t* targets,
                          const float* weights, int threads) {
  return lose_all(rows, size, static_cast<bf16*>(logits), targets, weights, threads);
}

double cross_entropy_fp32(int64_t rows, int64_t size, void* logits, const int64_t* targets,
                          const float* weights, int threads) {
  return lose_all(rows, size, static_cast<float*>(logits), targets, weights, threads);
}

// Token shift: `out` receives `count` mixes of each token of x [B, T, D] with the one before it. D is
// a multiple of 16.
void mix_bf16(int64_t batch, int64_t steps, int64_t width, int64_t count, const float* x,
              const float* const* weights, void* const* out, int threads) {
  mix<bf16>({batch, steps, width, count, x, weights}, out, threads);
}

void mix_fp32(int64_t batch, int64_t steps, int64_t width, int64_t count, const float* x,
              const float* const* weights, void* const* out, int threads) {
  mix<float>({batch, steps, width, count, x, weights}, out, threads);
}

// The gradients of x and of the weights [count, D].
void unmix_bf16(int64_t batch, int64_t steps, int64_t width, int64_t count, const float* x,
                const float* const* weights, const void* const* dout, float* dx, float* dweights,
                int threads) {
  unmix<bf16>({batch, steps, width, count, x, weights}, dout, dx, dweights, threads);
}

void unmix_fp32(int64_t batch, int64_t steps, int64_t width, int64_t count, const float* x,
                const float* const* weights, const void* const* dout, float* dx, float* dweights,
                int threads) {
  unmix<float>({batch, steps, width, count, x, weights}, dout, dx, dweights, threads);
}

}  // extern "C"
