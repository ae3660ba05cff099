// A kernel whose pieces throw, for the tests of deal.h.

#include <chrono>
#include <stdexcept>
#include <thread>

#include "deal.h"

namespace ffi = xla::ffi;

namespace {

// out[i] = 1 of the pieces that are done. Throws in a piece, if one has that number, or, at -2, before a thread has one.
ffi::Error play(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> thrower, ffi::Buffer<ffi::S32> memory,
                ffi::ResultBuffer<ffi::S32> out) {
  const int64_t pieces = out->element_count(), bad = *thrower.typed_data();
  const bool lacks_memory = *memory.typed_data();
  int32_t* done = out->typed_data();
  return guarded("throwing", [&] {
    deal(pool, pieces, [=](auto next) {
      const auto fail = [=] {
        if (lacks_memory) throw std::bad_alloc();
        throw std::runtime_error("a piece is bad");
      };
      if (bad == -2) fail();
      for (int64_t i; (i = next()) >= 0;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that other threads come
        if (i == bad) fail();
        done[i] = 1;
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(throwing, play,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
