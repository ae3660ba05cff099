// Products of rows with weights that are packed in the processor's order. XLA:CPU repacks weights in every product, which takes
// longer than the product of a few rows. Weights are packed in tiles of 16 columns, with pairs of rows adjacent:
// [n / 16, k / 2, 16, 2]. Sums are f32; each thread takes some columns for all rows, so that weights are read once.
//
// Zero rows, such as the rows of idle lanes, are not multiplied: only busy rows cost time.
//
// Letters: R rows, k numbers summed over, n columns; k and n are multiples of 32.

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "deal.h"
#include "pairs.h"
#include "tiles.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kPair = 2 * kLanes;  // columns multiplied at once
constexpr int kTileRows = 32;      // with tiles: rows multiplied per pass over the weights
constexpr int kVectorRows = 14;    // without tiles: the same, at most; 28 of 32 vector registers then hold sums
constexpr int kAhead = 1024;       // distance of the prefetch of weights, in numbers
constexpr int kPieces = 64;        // most pieces of a product

template <typename To>
struct Job {
  int64_t R, k, n;
  const bf16 *x, *weights;
  To* out;
};

// sums [2, 32, 16] = `count` rows [count, k] times two tiles of 16 columns.
template <int count>
void multiply(const bf16* x, const bf16* weights, int64_t k, bool ahead, float* sums) {
  const bf16* others = weights + k * kLanes;
  Lanes one[count] = {}, other[count] = {};
  for (int64_t d = 0; d < k; d += 2) {
    if (ahead) {
      __builtin_prefetch(weights + d * kLanes + kAhead);
      __builtin_prefetch(others + d * kLanes + kAhead);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) {
      one[i] = pair(one[i], alike(x + i * k + d), sixteen(weights + d * kLanes));
      other[i] = pair(other[i], alike(x + i * k + d), sixteen(others + d * kLanes));
    }
  }
  for (int i = 0; i < count; ++i) {
    store(one[i], sums + i * kLanes);
    store(other[i], sums + (kTileRows + i) * kLanes);
  }
}

using Multiply = void (*)(const bf16*, const bf16*, int64_t, bool, float*);

// `multiply` by number of rows, from 1 on.
template <int... before>
constexpr std::array<Multiply, sizeof...(before)> by_count(std::integer_sequence<int, before...>) {
  return {multiply<before + 1>...};
}
constexpr auto kMultiply = by_count(std::make_integer_sequence<int, kVectorRows>());

// The numbers of all rows, rows that are not zero first.
struct Order {
  std::vector<int64_t> rows;
  int64_t busy;
};

Order busy_first(const bf16* x, int64_t R, int64_t k) {
  std::vector<int64_t> rows(R);
  std::iota(rows.begin(), rows.end(), 0);
  const auto busy = std::stable_partition(rows.begin(), rows.end(), [x, k](int64_t r) {
    return std::any_of(x + r * k, x + (r + 1) * k, [](bf16 number) { return (number.bits & 0x7fff) != 0; });
  });
  return {rows, busy - rows.begin()};
}

template <typename To>
void run(ffi::ThreadPool pool, const Job<To>& job) {
  const bool tiles = kHasTiles && tiles_allowed();
  const int64_t columns = std::max<int64_t>(kPair, job.n / kPieces / kPair * kPair);
  const Order order = busy_first(job.x, job.R, job.k);
  const int64_t *rows = order.rows.data(), busy = order.busy;
  // Tiles need a multiple of 16 rows. Rows are copied only if some are zero or their number does not fit.
  const bool copied = busy < job.R || (tiles && busy % kLanes);
  std::vector<bf16> copy(copied ? (busy + kLanes - 1) / kLanes * kLanes * job.k : 0);
  for (int64_t i = 0; copied && i < busy; ++i) std::memcpy(&copy[i * job.k], job.x + rows[i] * job.k, job.k * sizeof(bf16));
  const bf16* x = copied ? copy.data() : job.x;
  const int64_t passes = std::max<int64_t>(1, (busy + kVectorRows - 1) / kVectorRows);
  const int64_t most = tiles ? kTileRows : (busy + passes - 1) / passes;
  // A thread may start after this function has returned: it must not read from this frame before it gets a piece.
  deal(pool, (job.n + columns - 1) / columns, [job, tiles, columns, x, rows, busy, most](auto next) {
    float sums[2 * kTileRows * kLanes];
    Tiles shape(tiles);
    for (int64_t piece; (piece = next()) >= 0;) {
      const int64_t first = piece * columns, end = std::min(job.n, first + columns);
      for (int64_t i = busy; i < job.R; ++i) std::fill(job.out + rows[i] * job.n + first, job.out + rows[i] * job.n + end, To{});
      for (int64_t column = first; column < end; column += kPair) {
        for (int64_t from = 0; from < busy; from += most) {
          const int64_t count = std::min(most, busy - from);
          const bf16 *left = x + from * job.k, *right = job.weights + column * job.k;
          if (tiles) multiply_rows(left, right, count, job.k, sums);
          else kMultiply[count - 1](left, right, job.k, !from, sums);
          for (int64_t i = 0; i < count; ++i)
            for (int side = 0; side < 2; ++side)
              store(load(sums + (side * kTileRows + i) * kLanes),
                    job.out + rows[from + i] * job.n + column + side * kLanes);
        }
      }
    }
  });
}

ffi::Error product(ffi::ThreadPool pool, ffi::Buffer<ffi::BF16> x, ffi::Buffer<ffi::BF16> weights,
                   ffi::Result<ffi::AnyBuffer> out) {
  auto go = [&](auto type) {
    using To = decltype(type);
    auto a = x.dimensions();
    run(pool, Job<To>{a[0], a[1], weights.dimensions()[0] * kLanes, reinterpret_cast<const bf16*>(x.untyped_data()),
                      reinterpret_cast<const bf16*>(weights.untyped_data()), static_cast<To*>(out->untyped_data())});
  };
  const bool halves = out->element_type() == ffi::BF16;
  if (!halves && out->element_type() != ffi::F32) return ffi::Error::InvalidArgument("product: bfloat16 or float32 comes out");
  return guarded("product", [&] { halves ? go(bf16{}) : go(float{}); });
}

}  // namespace

// The name of the instructions for these products; empty if the processor does not multiply bfloat16.
extern "C" const char* apr_jax_product_path() { return kHasTiles && tiles_allowed() ? "AMX" : kHasPairs ? "AVX512-BF16" : ""; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    apr_jax_product, product,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::BF16>>().Arg<ffi::Buffer<ffi::BF16>>().Ret<ffi::AnyBuffer>());
