// SPDX-License-Identifier: Apache-2.0
// has_<set>(): whether this processor, and what runs on it, have an instruction set.
#pragma once

namespace rnnkern {

bool has_scalar();
bool has_avx2();
bool has_avx512();
bool has_avx512vnni();
bool has_avx512bf16();
bool has_amx();
bool has_emulated_avx512bf16();
bool has_emulated_amx();

// Intel's cores take two cycles for a vdpbf16ps, in which they do four FMAs on widened operands:
// twice as many products (measured on Emerald Rapids).
bool multiplies_pairs_slowly();

}  // namespace rnnkern
