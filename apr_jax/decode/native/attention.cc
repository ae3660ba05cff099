// Attention of tokens over the slots that they see; reads the slots in place. See __init__.py for the reasons.
//
// Work is dealt to the threads of XLA's own pool in pieces: one problem, one kv head, a few tokens. A piece lists the slots
// that any of its tokens sees and goes through them tile by tile, prefetching the next tile. A tile is read once for all
// tokens, and a token skips groups of 16 slots that it does not see: slots that many threads see are read once, and slots of
// one thread cost the others nothing. Softmax is that of FlashAttention (Dao et al. 2022, section 3.1), in f32. Products are
// of one of three kinds, as the processor allows: vectors in f32; or, with weights rounded to bfloat16, pairs of bfloat16
// (pairs.h), for which keys are turned so that few sums cross lanes; or tiles (tiles.h).
//
// Letters: X problems with queries, Y tokens of each, H heads, K kv heads, h head size, P problems of the pool, N slots. A row
// is one head of one token.

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "deal.h"
#include "piece.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kRows = 64;   // rows of a piece, about
constexpr int kPieces = 4;  // least number of pieces per thread

template <typename T, int kSize, Kind kKind>
void piece(const Job<T>& job, int64_t number, Scratch& scratch) {
  const int64_t blocks = (job.Y + job.tokens - 1) / job.tokens;
  const int64_t first = number % blocks * job.tokens, end = std::min(first + job.tokens, job.Y);
  const int64_t kv = number / blocks % job.K, x = number / blocks / job.K;
  if (job.problem[x] < 0 || job.problem[x] >= job.P) {
    const int64_t size = job.H / job.K * job.h;
    for (int64_t y = first; y < end; ++y) std::memset(job.out + ((x * job.Y + y) * job.K + kv) * size, 0, size * sizeof(T));
    return;
  }
  Piece<T, kSize, kKind> one(job, x, kv, first, end, scratch);
  one.run();
  one.finish(job);
}

template <typename T, int kSize, Kind kKind>
void run(ffi::ThreadPool pool, Job<T> job) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads()), heads = job.H / job.K;
  const int64_t even = job.X * job.Y * job.K / (kPieces * threads);
  job.tokens = std::max<int64_t>(1, std::min<int64_t>({kRows / heads, even, job.Y}));
  deal(pool, job.X * job.K * ((job.Y + job.tokens - 1) / job.tokens), [job](auto next) {
    Scratch scratch;
    Tiles shape(kKind == Kind::kTiles);
    for (int64_t i; (i = next()) >= 0;) piece<T, kSize, kKind>(job, i, scratch);
  });
}

// The kind of products that the processor allows for heads of size kSize; 0 stands for sizes without a program of their own.
template <typename T, int kSize>
Kind kind() {
  if (!std::is_same_v<T, bf16> || !kSize) return Kind::kVectors;
  return kHasTiles && tiles_allowed() ? Kind::kTiles : kHasPairs ? Kind::kPairs : Kind::kVectors;
}

template <typename T, int kSize>
void choose(ffi::ThreadPool pool, const Job<T>& job) {
  const Kind chosen = kind<T, kSize>();
  if constexpr (std::is_same_v<T, bf16> && kSize > 0) {
    if (chosen == Kind::kTiles) return run<T, kSize, Kind::kTiles>(pool, job);
    if (chosen == Kind::kPairs) return run<T, kSize, Kind::kPairs>(pool, job);
  }
  run<T, kSize, Kind::kVectors>(pool, job);
}

// Calls use(the head size as a constant); 0 for a size without a program of its own.
template <typename Use>
auto by_size(int64_t h, const Use& use) {
  if (h == 64) return use(std::integral_constant<int, 64>());
  if (h == 128) return use(std::integral_constant<int, 128>());
  return use(std::integral_constant<int, 0>());
}

ffi::Error attend(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                  ffi::Buffer<ffi::S32> problem, ffi::Buffer<ffi::PRED> mask, ffi::Buffer<ffi::S32> fill,
                  ffi::Result<ffi::AnyBuffer> out) {
  auto go = [&](auto type) {
    using T = decltype(type);
    auto a = q.dimensions(), b = keys.dimensions();
    Job<T> job{};
    job.X = a[0], job.Y = a[1], job.H = a[2], job.h = a[3];
    job.P = b[0], job.N = b[1], job.K = b[2] / a[3];
    job.fill = std::min<int64_t>(*fill.typed_data(), job.N);
    job.q = static_cast<const T*>(q.untyped_data());
    job.keys = static_cast<const T*>(keys.untyped_data());
    job.values = static_cast<const T*>(values.untyped_data());
    job.problem = problem.typed_data();
    job.mask = reinterpret_cast<const uint8_t*>(mask.typed_data());
    job.out = static_cast<T*>(out->untyped_data());
    by_size(job.h, [&](auto size) { choose<T, size.value>(pool, job); });
  };
  const bool halves = q.element_type() == ffi::BF16;
  if (!halves && q.element_type() != ffi::F32) return ffi::Error::InvalidArgument("attention: bfloat16 or float32 is needed");
  return guarded("attention", [&] { halves ? go(bf16{}) : go(float{}); });
}

}  // namespace

// The name of the instructions with which attention over heads of size h is computed.
extern "C" const char* apr_jax_attention_path(bool halves, int64_t h) {
  const Kind chosen = by_size(h, [&](auto size) { return halves ? kind<bf16, size.value>() : kind<float, size.value>(); });
  return chosen == Kind::kTiles ? "AMX" : chosen == Kind::kPairs ? "AVX512-BF16" : kVectors;
}

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
