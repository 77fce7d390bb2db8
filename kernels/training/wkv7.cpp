// The RWKV-7 recurrence with its gradient, for training on a CPU. Plain C ABI, float32, heads of 64.
//
// Per head, with the state S[key][value]:
//   sa = S^T a                                          S_t = diag(w) S + b sa^T + k v^T
//   y  = S_t^T r
// Tensors are [B, T, H, 64], contiguous. Rows of S lie along the values, so that every sum over
// keys stays in registers; sums over values are folded sixteen rows at a time (`fold`). States of
// the caller are [B, H, 64 values, 64 keys], the other way round, as all RWKV-7 runtimes have them.

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "share.h"

namespace {

constexpr int kHead = 64;
constexpr int kLanes = 16;
constexpr int kVectors = kHead / kLanes;
constexpr int kChunk = 16;  // steps between two stored states

typedef float Lane __attribute__((vector_size(4 * kLanes)));
typedef float Loose __attribute__((vector_size(4 * kLanes), aligned(4)));

struct Row {
  Lane v[kVectors];
};

struct alignas(64) State {
  Row row[kHead];
};

inline Row load(const float* p) {
  Row out;
  for (int c = 0; c < kVectors; ++c) out.v[c] = *reinterpret_cast<const Loose*>(p + c * kLanes);
  return out;
}

inline void store(float* p, const Row& x) {
  for (int c = 0; c < kVectors; ++c) *reinterpret_cast<Loose*>(p + c * kLanes) = x.v[c];
}

template <int G, int... I>
inline Lane halve(Lane p, Lane q, std::integer_sequence<int, I...>) {
  constexpr int h = G / 2;
  return __builtin_shufflevector(p, q, (I / h * G + I % h)...) +
         __builtin_shufflevector(p, q, (I / h * G + I % h + h)...);
}

template <int G>
inline Lane halve(Lane p, Lane q) {
  return halve<G>(p, q, std::make_integer_sequence<int, kLanes>{});
}

// out[j] = the sum over the lanes of partial[j], for all 64 rows.
inline void fold(const Lane* partial, float* out) {
  for (int block = 0; block < kVectors; ++block) {
    Lane x[kLanes];
    for (int i = 0; i < 8; ++i) {
      x[i] = halve<16>(partial[block * 16 + 2 * i], partial[block * 16 + 2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) x[i] = halve<8>(x[2 * i], x[2 * i + 1]);
    for (int i = 0; i < 2; ++i) x[i] = halve<4>(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<Loose*>(out + block * kLanes) = halve<2>(x[0], x[1]);
  }
}

inline Lane dot(const Row& p, const Row& q) {
  Lane sum = p.v[0] * q.v[0];
  for (int c = 1; c < kVectors; ++c) sum += p.v[c] * q.v[c];
  return sum;
}

struct Inputs {
  const float *r, *w, *k, *v, *a, *b;
  Inputs at(int64_t offset) const {
    return {r + offset, w + offset, k + offset, v + offset, a + offset, b + offset};
  }
};

// sa[i] = sum over j of S[j][i] * a[j]
inline Row removed(const State& s, const float* a) {
  Row sum = {};
  for (int j = 0; j < kHead; ++j) {
    for (int c = 0; c < kVectors; ++c) sum.v[c] += s.row[j].v[c] * a[j];
  }
  return sum;
}

// next = one step from `s` (which may be the same object); returns y.
inline Row advance(const State& s, State& next, const Inputs& x, const Row& sa) {
  const Row v = load(x.v);
  Row y = {};
  for (int j = 0; j < kHead; ++j) {
    for (int c = 0; c < kVectors; ++c) {
      const Lane z = s.row[j].v[c] * x.w[j] + sa.v[c] * x.b[j] + v.v[c] * x.k[j];
      next.row[j].v[c] = z;
      y.v[c] += z * x.r[j];
    }
  }
  return y;
}

// The caller's state [value][key], or zeros where there is none.
void enter(const float* from, State& s) {
  std::memset(&s, 0, sizeof s);
  if (!from) return;
  for (int j = 0; j < kHead; ++j) {
    for (int i = 0; i < kHead; ++i) s.row[j].v[i / kLanes][i % kLanes] = from[i * kHead + j];
  }
}

void leave(const State& s, float* to) {
  for (int j = 0; j < kHead; ++j) {
    for (int i = 0; i < kHead; ++i) to[i * kHead + j] = s.row[j].v[i / kLanes][i % kLanes];
  }
}

void forward_head(int64_t steps, int64_t stride, Inputs x, const float* initial, float* y,
                  State* stored, float* last) {
  State s;
  enter(initial, s);
  for (int64_t t = 0; t < steps; ++t) {
    if (stored && t % kChunk == 0) stored[t / kChunk] = s;
    const Inputs now = x.at(t * stride);
    const Row sa = removed(s, now.a);
    store(y + t * stride, advance(s, s, now, sa));
  }
  leave(s, last);
}

struct Gradients {
  float *r, *w, *k, *v, *a, *b;
};

// One step back. `ds` enters as the gradient of S_t and leaves as that of S_(t-1).
void retreat(const State& before, const State& after, State& ds, const Inputs& x, const Row& sa,
             const float* dy_at, const Gradients& d, int64_t o) {
  const Row dy = load(dy_at);
  const Row v = load(x.v);
  Row dv = {};
  Row dsa = {};
  Lane pr[kHead], pk[kHead], pb[kHead], pw[kHead], pa[kHead];
  for (int j = 0; j < kHead; ++j) {
    Row g;
    for (int c = 0; c < kVectors; ++c) {
      g.v[c] = ds.row[j].v[c] + dy.v[c] * x.r[j];
      ds.row[j].v[c] = g.v[c];
      dv.v[c] += g.v[c] * x.k[j];
      dsa.v[c] += g.v[c] * x.b[j];
    }
    pr[j] = dot(after.row[j], dy);
    pk[j] = dot(g, v);
    pb[j] = dot(g, sa);
    pw[j] = dot(g, before.row[j]);
  }
  for (int j = 0; j < kHead; ++j) {
    pa[j] = dot(before.row[j], dsa);
    for (int c = 0; c < kVectors; ++c) {
      ds.row[j].v[c] = ds.row[j].v[c] * x.w[j] + dsa.v[c] * x.a[j];
    }
  }
  store(d.v + o, dv);
  fold(pr, d.r + o);
  fold(pk, d.k + o);
  fold(pb, d.b + o);
  fold(pw, d.w + o);
  fold(pa, d.a + o);
}

void backward_head(int64_t steps, int64_t stride, Inputs x, const float* dy, const State* stored,
                   const float* d_last, const Gradients& d, int64_t base, float* d_initial,
                   std::vector<State>& states) {
  State ds;
  enter(d_last, ds);
  Row sa[kChunk];
  for (int64_t chunk = (steps + kChunk - 1) / kChunk - 1; chunk >= 0; --chunk) {
    const int64_t first = chunk * kChunk;
    const int64_t count = steps - first < kChunk ? steps - first : kChunk;
    states[0] = stored[chunk];
    for (int64_t i = 0; i < count; ++i) {
      const Inputs now = x.at((first + i) * stride);
      sa[i] = removed(states[i], now.a);
      advance(states[i], states[i + 1], now, sa[i]);
    }
    for (int64_t i = count - 1; i >= 0; --i) {
      const int64_t o = (first + i) * stride;
      retreat(states[i], states[i + 1], ds, x.at(o), sa[i], dy + o, d, base + o);
    }
  }
  leave(ds, d_initial);
}

}  // namespace

extern "C" {

int64_t wkv7_chunks(int64_t steps) { return (steps + kChunk - 1) / kChunk; }

// `initial` may be null: zeros. `last` receives the states after the last step. `stored` receives
// those before every 16th, [B, H, chunks, 64 keys, 64 values], 64-byte aligned; null where no
// gradient is wanted.
void wkv7_forward(int64_t batch, int64_t steps, int64_t heads, const float* r, const float* w,
                  const float* k, const float* v, const float* a, const float* b,
                  const float* initial, float* y, float* last, float* stored, int threads) {
  const int64_t stride = heads * kHead;
  const int64_t chunks = wkv7_chunks(steps);
  auto* states = reinterpret_cast<State*>(stored);
  share(batch * heads, threads, [=](int64_t job) {
    const int64_t o = job / heads * steps * stride + job % heads * kHead;
    const int64_t head = job * kHead * kHead;
    forward_head(steps, stride, Inputs{r, w, k, v, a, b}.at(o), initial ? initial + head : nullptr,
                 y + o, states ? states + job * chunks : nullptr, last + head);
  });
}

// `d_last`, the gradient of the last states, may be null: zeros.
void wkv7_backward(int64_t batch, int64_t steps, int64_t heads, const float* r, const float* w,
                   const float* k, const float* v, const float* a, const float* b,
                   const float* stored, const float* dy, const float* d_last, float* dr, float* dw,
                   float* dk, float* dv, float* da, float* db, float* d_initial, int threads) {
  const int64_t stride = heads * kHead;
  const int64_t chunks = wkv7_chunks(steps);
  const auto* states = reinterpret_cast<const State*>(stored);
  share(batch * heads, threads, [=](int64_t job) {
    std::vector<State> scratch(kChunk + 1);
    const int64_t o = job / heads * steps * stride + job % heads * kHead;
    const int64_t head = job * kHead * kHead;
    backward_head(steps, stride, Inputs{r, w, k, v, a, b}.at(o), dy + o, states + job * chunks,
                  d_last ? d_last + head : nullptr, Gradients{dr, dw, dk, dv, da, db}, o,
                  d_initial + head, scratch);
  });
}

}  // extern "C"
