// SPDX-License-Identifier: Apache-2.0
// rnnkern._core: arrays in, checked views out, one shape of function throughout; no mathematics.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind/gil.h"
#include "bind/modules.h"
#include "bind/weights.h"
#include "cpu/engine.h"

namespace rnnkern {
namespace {

py::tuple plan(const py::handle& given, Index steps, Index batch) {
  const LayerSpec spec = read_spec(given);
  const Compute compute = read_compute(spec.compute);
  const auto positive = [](const char* name, Index value) {
    if (value < 1) {
      throw std::invalid_argument(std::string(name) + " must be at least 1, got " +
                                  std::to_string(value));
    }
  };
  positive("steps", steps), positive("batch", batch);
  const Plan chosen = by_dtype(spec, [&]<class T>(T) {
    const double live = static_cast<double>(steps) * static_cast<double>(batch);
    return make_plan(
        work_of<T>(spec.cell, steps, batch, live, spec.inputs, spec.units, spec.outputs, compute),
        thread_limit(cores_now()));
  });
  return py::make_tuple(chosen.row_groups, chosen.unit_groups, chosen.reason);
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto* backend : supported_backends()) names.emplace_back(backend->name);
  return names;
}

}  // namespace
}  // namespace rnnkern

// threadpoolctl finds and limits us by these (python/rnnkern/machine.py).
extern "C" {
[[gnu::visibility("default")]] int rnnkern_get_num_threads() {
  return rnnkern::thread_limit(rnnkern::cores_now());
}
[[gnu::visibility("default")]] void rnnkern_set_num_threads(int count) {
  rnnkern::set_process_threads(count, "threadpoolctl");
}
}

namespace rnnkern {

PYBIND11_MODULE(_core, m) {
  m.doc() = "Kernels of rnnkern, private: the layers are the interface.";
  chosen_backend();  // throws where RNNKERN_ISA is wrong

  bind_jax(m);
  bind_network(m);
  bind_stepper(m);
  bind_training(m);
  m.def(
      "cells", cells,
      "What each cell's gates and states are called, how many values a step saves, and which "
      "gate bias_hn belongs to (-1 for none); how many weights of its own a unit has, and what the "
      "array of these is called.");
  m.def("functions", functions,
        "What layers may be given for tanh and the sigmoid: name -> (how many numbers it takes, "
        "alpha, beta unless others are given).");
  m.def("plan", plan, py::arg("spec"), py::arg("steps"), py::arg("batch"),
        "(row groups, unit groups, reason): how a call of that size is shared by threads.");
  m.def("isa", [] { return chosen_backend().backend->name; }, "The instruction set in use.");
  m.def("isa_reason", [] { return chosen_backend().reason; }, "Why it is in use.");
  m.def(
      "use_isa", [](const std::string& name) { use_backend(name); }, py::arg("name"),
      "For tests: that one from now on, and for '' the chosen one again; no call may be under way, "
      "and what was packed before is refused.");
  m.def(
      "bfloat16_product", [] { return chosen_backend().backend->bfloat16_product; },
      "What computes products with compute 'bfloat16', in words.");
  m.def(
      "int8_product", [] { return int8_backend().int8_product; },
      "What computes products of int8 weights, in words.");
  m.def("supported_isas", supported_isas, "Those that were built and run here, best first.");
  set_interrupt_check(GilReleased::interrupted);
  m.def(
      "thread_limit", [] { return thread_limit(cores_now()); },
      "How many threads a call from this thread may use.");
  m.def("thread_limit_reason", thread_limit_reason, "Why it is so many.");
  m.def("process_threads", process_threads,
        "How many the process asks for; 0 for as many as there are.");
  m.def(
      "set_process_threads", [](int count) { set_process_threads(count, "set_num_threads"); },
      py::arg("count"), "Sets that.");
  m.def("own_threads", own_threads,
        "How many this thread asks for, which goes before the process's; 0 for no such wish.");
  m.def("set_own_threads", set_own_threads, py::arg("count"), "Sets that.");
  m.def("cpu_quota", cpu_quota, py::arg("root") = "",
        "CPUs' worth of time that the control groups allow, inf for no limit; root stands before "
        "every path.");
  m.def("pretend_cores", pretend_cores, py::arg("count"), py::arg("root") = "",
        "For tests: as if the process had so many cores (0: its own), all of them free, and its "
        "control groups' files below root.");
  m.def("pretend_teams", pretend_teams, py::arg("sizes"),
        "For tests: threads of the segments of calls, in turns, each segment as short as can be; "
        "empty: as needed.");
}

}  // namespace rnnkern
