// Attention of tokens over the slots that they see, read where they lie. See __init__.py for what it is for.
//
// Work is dealt to the threads of XLA's own pool in pieces: one problem, one kv head, a few tokens. A piece lists the slots
// that any of its tokens sees and goes through them tile by tile. Keys and values of a tile are widened to f32 once for all
// tokens (where the processor multiplies bfloat16, keys are multiplied as they lie), and groups of 16 slots that a token does
// not see are skipped for it. So what many threads see is read once, and what one thread sees costs the others nothing. Softmax
// is that of FlashAttention (Dao et al. 2022, section 3.1), in f32. Asking memory for the next tile ahead of time gains nothing.
//
// Letters: X problems that are asked about, Y tokens of each, H heads, K kv heads, h head size, P problems of the pool, N
// slots. A query is one head of one token.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kLanes = 16;            // numbers of a vector, and slots of a group
constexpr int kGroups = 4;            // groups of a tile
constexpr int kTile = kGroups * kLanes;
constexpr int kQueries = 64;          // of a piece, about
constexpr int kPieces = 4;            // that each thread should find at least
constexpr float kNothing = -1e30f;    // score of what is not seen

using Lanes = float __attribute__((vector_size(4 * kLanes), aligned(4)));
using Words = int32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Bits = uint32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes), aligned(2)));

struct bf16 {
  uint16_t bits;
};

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline Lanes load(const bf16* from) {
  return (Lanes)(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}
inline void store(Lanes x, float* to) { *reinterpret_cast<Lanes*>(to) = x; }
inline void store(Lanes x, bf16* to) {  // to nearest, ties to even; is never given NaN
  Bits bits = (Bits)x;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}
// Adds products of 32 numbers, two to a lane, where the processor can.
#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
inline Lanes pairs(Lanes sum, const bf16* a, const bf16* b) {
  return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}
#else
constexpr bool kPairs = false;
inline Lanes pairs(Lanes sum, const bf16*, const bf16*) { return sum; }
#endif
inline Lanes all(float x) { return Lanes{} + x; }

// exp of numbers up to 0 (polynomial of the Cephes library, relative error about 2e-7); below -87 it is that of -87.
inline Lanes exponential(Lanes x) {
  x = x < -87.0f ? all(-87.0f) : x;
  const Lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // the sum is too large to hold a fraction: this rounds
  const Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * (Lanes)((__builtin_convertvector(n, Words) + 127) << 23);
}

// The sum of each of 16 vectors, as one vector: neighbours are folded into one, four times over.
inline Lanes sums(Lanes* v) {
#define PICK(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
  for (int i = 0; i < 8; ++i) {
    const Lanes a = v[2 * i], b = v[2 * i + 1];
    v[i] = PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const Lanes a = v[2 * i], b = v[2 * i + 1];
    v[i] = PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const Lanes a = v[2 * i], b = v[2 * i + 1];
    v[i] = PICK(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           PICK(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  return PICK(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         PICK(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#undef PICK
}

inline float sum(Lanes x) {
  float result = 0;
  for (int i = 0; i < kLanes; ++i) result += x[i];
  return result;
}

inline float largest(Lanes x) {
#define FOLD(...) { const Lanes y = __builtin_shuffle(x, Words{__VA_ARGS__}); x = y > x ? y : x; }
  FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
  FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
  FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
  FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#undef FOLD
  return x[0];
}

template <typename T>
struct Job {
  int64_t X, Y, H, P, N, K, h;
  int64_t fill;             // nobody sees this slot or one behind it; a multiple of 8
  int64_t tokens;           // of a piece
  const T *q, *keys, *values;
  const int32_t* problem;   // [X]; P for nobody
  const uint8_t* mask;      // [X, Y, N]
  T* out;
};

// What a thread keeps from piece to piece, so that memory is asked for once.
struct Scratch {
  std::vector<int32_t> seen;
  std::vector<uint16_t> own;
  std::vector<uint8_t> awake;
  std::vector<float> numbers;
};

template <typename T, int kSize>
class Piece {
 public:
  Piece(const Job<T>& job, int64_t x, int64_t kv, int64_t first, int64_t end, Scratch& scratch)
      : h_(kSize ? kSize : job.h), width_(job.K * h_), heads_(job.H / job.K), tokens_(end - first),
        queries_(tokens_ * heads_), N_(job.N), scale_(1.0f / std::sqrt(static_cast<float>(h_))) {
    asked_ = job.q + ((x * job.Y + first) * job.H + kv * heads_) * h_;
    stride_ = job.H * h_;
    mask_ = job.mask + (x * job.Y + first) * N_;
    const int64_t start = job.problem[x] * N_ * width_ + kv * h_;
    keys_ = job.keys + start;
    values_ = job.values + start;
    list(job.fill, scratch);
    scratch.own.resize(tokens_ * kGroups);
    own_ = scratch.own.data();
    scratch.numbers.resize(queries_ * (2 * h_ + kTile + 1 + kLanes) + kTile * h_);
    q_ = scratch.numbers.data();
    out_ = q_ + queries_ * h_;
    weight_ = out_ + queries_ * h_;
    tile_ = weight_ + queries_ * kTile;
    top_ = tile_ + kTile * h_;
    total_ = top_ + queries_;
    std::fill(tile_, tile_ + kTile * h_, 0.0f);  // what stands behind the last slot gets the weight 0, and must be finite
    for (int64_t r = 0; r < queries_; ++r) {
      for (int64_t d = 0; !kDirect && d < h_; d += kLanes) store(load(query(r) + d), q_ + r * h_ + d);
      for (int64_t d = 0; d < h_; d += kLanes) store(Lanes{}, out_ + r * h_ + d);
      top_[r] = kNothing;
      store(Lanes{}, total_ + r * kLanes);
    }
  }

  void run() {
    for (int64_t first = 0; first < slots_; first += kTile) {
      if (!kDirect) fetch(keys_, first);
      look(first);
      for (int64_t r = 0; r < queries_; ++r) score(r, seen_ + first);
      fetch(values_, first);
      for (int64_t r = 0; r < queries_; ++r) gather(r);
    }
  }

  void finish(const Job<T>& job) {
    for (int64_t r = 0; r < queries_; ++r) {
      T* to = job.out + (query(r) - job.q);
      const float total = sum(load(total_ + r * kLanes)), inverse = total > 0 ? 1.0f / total : 0.0f;
      for (int64_t d = 0; d < h_; d += kLanes) store(load(out_ + r * h_ + d) * inverse, to + d);
    }
  }

 private:
  // Keys and queries are multiplied as they lie, not widened first.
  static constexpr bool kDirect = kPairs && std::is_same_v<T, bf16> && kSize > 0 && kSize % (2 * kLanes) == 0;

  const T* query(int64_t r) const { return asked_ + r / heads_ * stride_ + r % heads_ * h_; }

  // The slots that some token sees, in order.
  void list(int64_t fill, Scratch& scratch) {
    scratch.seen.resize(fill + kTile);
    seen_ = scratch.seen.data();
    scratch.awake.assign(tokens_, 0);
    awake_ = scratch.awake.data();
    for (int64_t n = 0; n < fill; n += 8) {
      uint64_t any = 0;
      for (int64_t y = 0; y < tokens_; ++y) {
        uint64_t word;
        std::memcpy(&word, mask_ + y * N_ + n, 8);
        awake_[y] |= word != 0;
        any |= word;
      }
      for (int64_t i = 0; any; ++i, any >>= 8) {
        seen_[slots_] = static_cast<int32_t>(n + i);
        slots_ += any & 1;
      }
    }
    std::fill(seen_ + slots_, seen_ + (slots_ + kTile - 1) / kTile * kTile, 0);  // read, and given no weight
  }

  int64_t count(int64_t first) const { return std::min<int64_t>(kTile, slots_ - first); }

  void fetch(const T* from, int64_t first) {
    for (int64_t i = 0; i < count(first); ++i)
      for (int64_t d = 0; d < h_; d += kLanes) store(load(from + seen_[first + i] * width_ + d), tile_ + i * h_ + d);
  }

  // Whether the token of a query sees something of the tile.
  bool blind(int64_t r) const {
    uint64_t bits;
    static_assert(sizeof(bits) == kGroups * sizeof(*own_));
    std::memcpy(&bits, own_ + r / heads_ * kGroups, sizeof(bits));
    return bits == 0;
  }

  // Which of a tile's slots each token sees, a bit a slot.
  void look(int64_t first) {
    for (int64_t y = 0; y < tokens_; ++y) {
      uint16_t bits[kGroups] = {};
      for (int64_t i = 0; awake_[y] && i < count(first); ++i)
        bits[i / kLanes] |= static_cast<uint16_t>(mask_[y * N_ + seen_[first + i]] << (i % kLanes));
      std::copy(bits, bits + kGroups, own_ + y * kGroups);
    }
  }

  void score(int64_t r, const int32_t* slot) {
    if (blind(r)) return;
    const Words kBit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const uint16_t* own = own_ + r / heads_ * kGroups;
    float* weight = weight_ + r * kTile;
    Lanes best = all(top_[r]);
    for (int64_t i = 0; i < kGroups; ++i) {
      if (!own[i]) continue;
      Lanes part[kLanes] = {};
      if constexpr (kDirect) {
        for (int64_t j = 0; j < kLanes; ++j) {
          const T* key = keys_ + slot[i * kLanes + j] * width_;
          for (int64_t d = 0; d < h_; d += 2 * kLanes) part[j] = pairs(part[j], query(r) + d, key + d);
        }
      } else {
        for (int64_t d = 0; d < h_; d += kLanes) {
          const Lanes q = load(q_ + r * h_ + d);
          for (int64_t j = 0; j < kLanes; ++j) part[j] += q * load(tile_ + (i * kLanes + j) * h_ + d);
        }
      }
      Lanes value = ((kBit & own[i]) != 0) ? sums(part) * scale_ : all(kNothing);
      best = value > best ? value : best;
      store(value, weight + i * kLanes);
    }
    const float now = largest(best);
    Lanes added = load(total_ + r * kLanes);
    if (now > top_[r]) {
      const Lanes shrink = exponential(all(top_[r] - now));
      added *= shrink;
      for (int64_t d = 0; d < h_; d += kLanes) store(load(out_ + r * h_ + d) * shrink, out_ + r * h_ + d);
      top_[r] = now;
    }
    for (int64_t i = 0; i < kGroups; ++i) {
      if (!own[i]) continue;
      const Lanes value = load(weight + i * kLanes);
      const Lanes one = value > kNothing ? exponential(value - now) : Lanes{};
      added += one;
      store(one, weight + i * kLanes);
    }
    store(added, total_ + r * kLanes);
  }

  void gather(int64_t r) {
    if (blind(r)) return;
    constexpr int kMost = kSize ? kSize / kLanes : 4;  // vectors held in registers
    const uint16_t* own = own_ + r / heads_ * kGroups;
    for (int64_t begin = 0; begin < h_; begin += kMost * kLanes) {
      const int64_t some = kSize ? kMost : std::min<int64_t>(kMost, (h_ - begin) / kLanes);
      float* to = out_ + r * h_ + begin;
      Lanes held[kMost];
      for (int64_t d = 0; d < some; ++d) held[d] = load(to + d * kLanes);
      for (int64_t i = 0; i < kGroups; ++i) {
        if (!own[i]) continue;
        for (int64_t j = i * kLanes; j < (i + 1) * kLanes; ++j) {
          const float weight = weight_[r * kTile + j];
          for (int64_t d = 0; d < some; ++d) held[d] += weight * load(tile_ + j * h_ + begin + d * kLanes);
        }
      }
      for (int64_t d = 0; d < some; ++d) store(held[d], to + d * kLanes);
    }
  }

  const int64_t h_, width_, heads_, tokens_, queries_, N_;
  const float scale_;
  const T* asked_;   // the first query
  int64_t stride_;   // from a token's queries to the next one's
  int64_t slots_ = 0;
  const uint8_t* mask_;
  const T *keys_, *values_;
  int32_t* seen_;
  uint16_t* own_;    // what each token sees of the tile, a bit a slot
  uint8_t* awake_;   // whether a token sees anything
  float *q_, *out_, *weight_, *tile_, *top_, *total_;
};

template <typename T, int kSize>
void piece(const Job<T>& job, int64_t number, Scratch& scratch) {
  const int64_t blocks = (job.Y + job.tokens - 1) / job.tokens;
  const int64_t first = number % blocks * job.tokens, end = std::min(first + job.tokens, job.Y);
  const int64_t kv = number / blocks % job.K, x = number / blocks / job.K;
  if (job.problem[x] < 0 || job.problem[x] >= job.P) {
    const int64_t size = job.H / job.K * job.h;
    for (int64_t y = first; y < end; ++y) std::memset(job.out + ((x * job.Y + y) * job.K + kv) * size, 0, size * sizeof(T));
    return;
  }
  Piece<T, kSize> one(job, x, kv, first, end, scratch);
  one.run();
  one.finish(job);
}

// The caller works too, and waits only for pieces that were begun: threads that are busy elsewhere cannot block it.
template <typename T>
void run(ffi::ThreadPool pool, Job<T> job) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads()), heads = job.H / job.K;
  const int64_t even = job.X * job.Y * job.K / (kPieces * threads);
  job.tokens = std::max<int64_t>(1, std::min<int64_t>({kQueries / heads, even, job.Y}));
  const int64_t pieces = job.X * job.K * ((job.Y + job.tokens - 1) / job.tokens);
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, pieces, job] {
    Scratch scratch;
    for (int64_t i; (i = shared->next.fetch_add(1)) < pieces; shared->done.fetch_add(1)) {
      if (job.h == 64) piece<T, 64>(job, i, scratch);
      else if (job.h == 128) piece<T, 128>(job, i, scratch);
      else piece<T, 0>(job, i, scratch);
    }
  };
  for (int64_t i = 0; i < std::min(threads, pieces) - 1; ++i) pool.Schedule([work] { work(); });
  work();
  while (shared->done.load(std::memory_order_acquire) < pieces) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

ffi::Error attend(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                  ffi::Buffer<ffi::S32> problem, ffi::Buffer<ffi::PRED> mask, ffi::Buffer<ffi::S32> fill,
                  ffi::Result<ffi::AnyBuffer> out) {
  auto go = [&](auto type) {
    using T = decltype(type);
    auto a = q.dimensions(), b = keys.dimensions();
    Job<T> job{a[0], a[1], a[2], b[0], b[1], b[2] / a[3], a[3]};
    job.fill = std::min<int64_t>(*fill.typed_data(), job.N);
    job.q = static_cast<const T*>(q.untyped_data());
    job.keys = static_cast<const T*>(keys.untyped_data());
    job.values = static_cast<const T*>(values.untyped_data());
    job.problem = problem.typed_data();
    job.mask = reinterpret_cast<const uint8_t*>(mask.typed_data());
    job.out = static_cast<T*>(out->untyped_data());
    run(pool, job);
  };
  if (q.element_type() == ffi::BF16) go(bf16{});
  else if (q.element_type() == ffi::F32) go(float{});
  else return ffi::Error::InvalidArgument("attention: bfloat16 or float32 is needed");
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(apr_jax_attention, attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());
