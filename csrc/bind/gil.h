// SPDX-License-Identifier: Apache-2.0
// The interpreter's lock, given up while kernels compute.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/team/team.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace rnnkern {

namespace py = pybind11;

// Without the lock for as long as it lives.
//
// An interpreter that ends does not give it to other threads any more. Python up to 3.13 ends a thread that
// asks for it, which would unwind the stack through destructors, such as the one below, that must not be
// left that way: the process would be aborted. So such a thread stays here until the process is gone, as
// Python 3.14 has it.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) { current_ = this; }
  ~GilReleased() {
    current_ = nullptr;
    take(state_);
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

  // Within one: runs the handlers of signals that have arrived, if this is the thread that does so.
  // Whether one of them raised; the exception is then set.
  static bool interrupted() {
    GilReleased* const here = current_;
    if (!here) return false;
    take(here->state_);
    const bool raised = PyErr_CheckSignals() != 0;
    here->state_ = PyEval_SaveThread();
    return raised;
  }

 private:
  static void take(PyThreadState* state) {
    if (ending()) stay();
    try {
      PyEval_RestoreThread(state);
    } catch (...) {  // the end of a thread, as the C library has it
      stay();
    }
  }

  static bool ending() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#elif defined(PYPY_VERSION)
    return false;
#else
    return _Py_IsFinalizing();
#endif
  }

  [[noreturn]] static void stay() {
    for (;;) pause();
  }

  PyThreadState* state_;
  static inline thread_local GilReleased* current_ = nullptr;
};

// Flops above which other Python threads shall run meanwhile: below, to hand the lock over takes as long.
inline constexpr double kWorthReleasing = 1e6;

// The result of compute() of so many flops, without the lock; a signal handler's exception where it was
// interrupted.
template <class F>
auto without_gil(double flops, F compute) {
  if (flops < kWorthReleasing) return compute();
  try {
    const GilReleased released;
    return compute();
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

}  // namespace rnnkern
