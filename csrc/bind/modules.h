// SPDX-License-Identifier: Apache-2.0
// The parts of rnnkern._core, each of which adds its own to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnkern {

void bind_jax(pybind11::module_& m);
void bind_network(pybind11::module_& m);
void bind_stepper(pybind11::module_& m);
void bind_training(pybind11::module_& m);

}  // namespace rnnkern
