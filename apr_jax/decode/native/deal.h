// Deals pieces of work to the threads of XLA's own thread pool, and reports their errors to XLA.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace {

// Calls work(next) on some threads; next() returns the number of a piece to do, or -1 when all pieces are begun. The caller
// works too, and waits only for begun pieces: threads that are busy elsewhere cannot block the caller. An exception of a thread
// is rethrown to the caller when no thread works any more; pieces that were not begun are then left undone.
template <typename Work>
void deal(xla::ffi::ThreadPool pool, int64_t pieces, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex guard;
    std::exception_ptr error;  // the first one
  };
  auto shared = std::make_shared<Shared>();
  const auto fail = [shared, pieces] {
    {
      const std::lock_guard<std::mutex> lock(shared->guard);
      if (!shared->error) shared->error = std::current_exception();
    }
    while (shared->next.fetch_add(1) < pieces) shared->done.fetch_add(1);
  };
  auto go = [shared, pieces, work, fail] {
    bool holds = false;  // the thread holds a piece; asking for the next piece completes it
    try {
      work([&] {
        if (holds) shared->done.fetch_add(1);
        const int64_t i = shared->next.fetch_add(1);
        holds = i < pieces;
        return holds ? i : -1;
      });
    } catch (...) {
      fail();
      if (holds) shared->done.fetch_add(1);
    }
  };
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  try {
    for (int64_t i = 0; i < std::min(threads, pieces) - 1; ++i) pool.Schedule([go] { go(); });
  } catch (...) {
    fail();
  }
  go();
  while (shared->done.load(std::memory_order_acquire) < pieces) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  const std::lock_guard<std::mutex> lock(shared->guard);
  if (shared->error) std::rethrow_exception(shared->error);
}

// Does the work of a kernel; an exception becomes an XLA error with the kernel's name.
template <typename Work>
xla::ffi::Error guarded(const std::string& name, const Work& work) {
  using xla::ffi::Error;
  try {
    work();
    return Error::Success();
  } catch (const std::bad_alloc&) {
    return Error(xla::ffi::ErrorCode::kResourceExhausted, name + ": there is no memory for its scratch space");
  } catch (const std::exception& error) {
    return Error(xla::ffi::ErrorCode::kInternal, name + ": " + error.what());
  }
}

}  // namespace
