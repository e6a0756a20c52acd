# SPDX-License-Identifier: Apache-2.0
"""Faults in the kernels, in C++.

One build has them all, and a number in the environment says which one counts: a piece is a whole
statement, or else an expression that stands where C++ takes ``(fault ? new : old)``.
"""

from __future__ import annotations

from fault import Fault

_GRADIENTS = "cells/test_gradients.py::test_finite_differences"
_REFERENCE = "cells/test_properties.py::test_any_problem"
_NORMS = "cells/test_layer_norm.py::test_gradients_are_those_of_finite_differences"
_VARIANTS = "cells/test_variants.py::test_values_and_gradients"
_ACTIVATIONS = "kernels/test_activations.py"
_PASSES = "kernels/test_training_passes.py::test_agree_with_float64"
_LONG_SUMS = "cells/test_precision.py"
_STREAM = "layers/test_stream.py::test_steps_are_the_whole_call"


def _fault(file: str, name: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"csrc/{file}", old, new, tests)


_CELLS = [
    _fault(
        "cells/lstm.h",
        "lstm-forgets-where-it-should-take-in",
        "s.c = f.held(fma(s.saved[Gates::forget], s.c, s.saved[input] * s.saved[cell]));",
        "s.c = f.held(fma(s.saved[input], s.c, s.saved[Gates::forget] * s.saved[cell]));",
        _REFERENCE,
    ),
    _fault(
        "core/cell.h",
        "lstms-output-without-tanh",
        "return gate * f.output(c);",
        "return gate * c;",
        _REFERENCE,
    ),
    _fault(
        "cells/lstm.h",
        "lstms-forget-gradient-with-the-later-cell",
        "f.gate_chain(s.saved[Gates::forget], dc * s.c_previous)",
        "f.gate_chain(s.saved[Gates::forget], dc * s.c)",
        _GRADIENTS,
    ),
    _fault(
        "cells/lstm.h",
        "lstms-cell-gradient-is-not-passed-on",
        "s.dc = dc * s.saved[Gates::forget];",
        "s.dc = s.dc * s.saved[Gates::forget];",
        _GRADIENTS,
    ),
    _fault(
        "cells/lstm.h",
        "lstms-cell-gradient-is-told-as-the-next-steps",
        "s.dc_now = whole;",
        "s.dc_now = s.dc;",
        "cells/test_state_gradients.py::test_a_state_gradient_is_that_of_the_rest_of_the_sequence",
    ),
    _fault(
        "cells/gru.h",
        "the-reset-gates-direct-path-is-the-wrong-way",
        "s.direct = fma(s.doperand, reset, s.direct);",
        "s.direct = fma(s.doperand, V(1) - reset, s.direct);",
        _GRADIENTS,
    ),
    _fault(
        "cells/gru.h",
        "reset-afters-product-has-no-reset",
        "f.candidate(fma(s.saved[r], s.saved[product], s.x[n]))",
        "f.candidate(s.saved[product] + s.x[n])",
        _REFERENCE,
    ),
    _fault(
        "cells/gru.h",
        "reset-befores-reset-gradient-is-linear",
        "s.delta[r] = f.gate_chain(reset, s.doperand * s.h_previous);",
        "s.delta[r] = s.doperand * s.h_previous * reset;",
        _GRADIENTS,
    ),
    _fault(
        "cells/gru.h",
        "reset-afters-product-gradient-has-no-reset",
        "s.delta[product] = s.delta[n] * reset;",
        "s.delta[product] = s.delta[n];",
        _GRADIENTS,
    ),
    _fault(
        "cells/simplified_gru.h",
        "the-simplified-gru-keeps-what-it-should-replace",
        "s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);",
        "s.h = fma(s.saved[u], s.h - s.saved[n], s.saved[n]);",
        _REFERENCE,
    ),
    _fault(
        "cells/simplified_gru.h",
        "the-simplified-grus-direct-path-is-closed",
        "s.direct = s.dh * (one - update);",
        "s.direct = V(0) * (one - update);",
        _GRADIENTS,
    ),
    _fault(
        "cells/minimal_gated.h",
        "the-minimal-gated-unit-keeps-what-it-should-replace",
        "s.h = fma(s.saved[forget], s.saved[n] - s.h, s.h);",
        "s.h = fma(s.saved[forget], s.h - s.saved[n], s.saved[n]);",
        _REFERENCE,
    ),
    _fault(
        "cells/minimal_gated.h",
        "the-minimal-gated-units-forget-gradient-lacks-the-candidates-path",
        "fma(s.dh, s.saved[n] - s.h_previous, s.doperand * s.h_previous)",
        "s.dh * (s.saved[n] - s.h_previous)",
        _GRADIENTS,
    ),
    _fault(
        "core/functions.h",
        "tanhs-derivative-is-linear",
        "return d * (V(1) - result * result);",
        "return d * (V(1) - result);",
        _GRADIENTS,
    ),
    _fault(
        "core/functions.h",
        "a-gradient-passes-a-bound-of-c",
        "return positive(V(options_.cell_clip) - abs(c), d);",
        "return d;",
        _VARIANTS,
    ),
    _fault(
        "core/functions.h",
        "a-gradient-passes-a-bound-of-pre-activations",
        "return positive(abs(result - ends.low), positive(abs(result - ends.high), d));",
        "return d;",
        _VARIANTS,
    ),
    _fault(
        "cells/lstm.h",
        "the-forget-gates-peephole-sends-c-nothing",
        "s.dc = fma(s.unit[of_forget], s.delta[Gates::forget], s.dc);",
        ";",
        _VARIANTS,
    ),
]

_FUNCTIONS = [
    _fault("core/activations.h", "tanh-is-one-too-soon", "V(ExpConstants<T>::tanh_is_one)",
           "V(T(7))", _ACTIVATIONS),
    _fault("core/activations.h", "tanh-loses-digits-near-0",
           "fma(e.p, e.scale, e.scale - V(T(1)))", "fma(e.p, e.scale, e.scale) - V(T(1))",
           _ACTIVATIONS),
    _fault("core/activations.h", "ln-2-has-one-part", "V(-C::ln2_low)", "V(T(0))", _ACTIVATIONS),
    _fault("core/activations.h", "float64s-series-is-off", "exp_rest(r)",
           "(exp_rest(r) * V(T(1 + 1e-13)))", _ACTIVATIONS),
    _fault(
        "core/activations.h",
        "exp-of-very-little-is-not-0",
        "return bounded - positive(V(C::least) - x, bounded);",
        "return bounded;",
        _ACTIVATIONS,
    ),
    _fault(
        "core/activations.h",
        "sigmoid-hides-a-nan",
        "max(V(C::least), min(V(C::most), V(T(0)) - x))",
        "max(min(V(T(0)) - x, V(C::most)), V(C::least))",
        _ACTIVATIONS,
    ),
    _fault(
        "cpu/isa/lane_avx2.h",
        "ties-to-bfloat16-go-up",
        "_mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))",
        "_mm256_set1_epi32(0x8000)",
        "kernels/test_bfloat16.py::test_operands_are_rounded_to_the_nearest_ties_to_even",
    ),
    _fault(
        "cpu/isa/lane_avx2.h",
        "relus-derivative-at-zero-is-one",
        "_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ)",
        "_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GE_OQ)",
        "cells/test_properties.py::test_float32_agrees_with_float64",
    ),
]  # fmt: skip

_TRAINING = [
    _fault(
        "cpu/training.h",
        "adam-squares-no-gradient",
        "load_some<V>(a.second + i, n) * second_beta + g * g",
        "load_some<V>(a.second + i, n) * second_beta + g",
        _PASSES,
    ),
    _fault(
        "cpu/training.h",
        "adams-epsilon-is-under-the-root",
        "first / (sqrt(second) + epsilon) * rate",
        "first / sqrt(second + epsilon) * rate",
        _PASSES,
    ),
    _fault(
        "cpu/training.h",
        "the-norm-leaves-out-what-fills-no-row",
        "i < end",
        "i + kRow < end",
        _PASSES,
    ),
    _fault(
        "cpu/training.h",
        "softmax-of-large-logits-overflows",
        "largest<V>(x, s.classes)",
        "T(0) * largest<V>(x, s.classes)",
        "training/test_losses.py::test_huge_logits_neither_overflow_nor_vanish",
    ),
    _fault(
        "cpu/training.h",
        "the-targets-gradient-has-no-weight",
        "out[s.targets[row]] -= s.weight;",
        "out[s.targets[row]] -= T(1);",
        _PASSES,
    ),
]

_LOOPS = [
    _fault(
        "core/schedule.cpp",
        "rows-go-by-rising-length",
        "return length(a) > length(b);",
        "return length(a) < length(b);",
        _REFERENCE,
    ),
    _fault(
        "core/stretches.cpp",
        "a-way-back-never-begins-anew",
        "if (all.size() > own) all.back().anew[1] = true;",
        "if (all.size() > own) all.back().anew[1] = false;",
        "layers/test_resets.py::test_packed_sequences_are_calls_apart",
    ),
    _fault(
        "cpu/recurrent/forward.h",
        "every-step-begins-at-the-first-state",
        "i >= continued",
        "i >= 0",
        _REFERENCE,
    ),
    _fault(
        "cpu/recurrent/recurrent_panels.h",
        "a-candidates-own-bias-is-every-gates",
        "biased = cell.recurrent_bias_gate - first",
        "biased = 0 - first",
        _REFERENCE,
    ),
    _fault(
        "cpu/recurrent/cell_io.h",
        "the-operands-gate-acts-the-wrong-way",
        "step.saved[Cell::operand_gate] * step.h",
        "(V(1) - step.saved[Cell::operand_gate]) * step.h",
        _REFERENCE,
    ),
    _fault(
        "cpu/recurrent/cell_io.h",
        "rows-that-end-early-lose-their-last-gradient",
        "lane.store(dh, lane.load(dh) + product);",
        "lane.store(dh, product);",
        _GRADIENTS,
    ),
    _fault(
        "cpu/recurrent/weight_gradients.h",
        "the-candidates-own-bias-has-no-gradient",
        "collect_biases(problem_.dbias_hn, shared_.bias_sums + gates_ * units_, units_);",
        ";",
        _GRADIENTS,
    ),
    _fault(
        "cpu/recurrent/weight_gradients.h",
        "weights-sum-many-rows-in-a-row",
        "ends_rows(kSumRows)",
        "done == all",
        _LONG_SUMS,
    ),
    _fault(
        "cpu/recurrent/norm_gradients.h",
        "biases-sum-many-rows-in-a-row",
        "begin + kRows < rows",
        "false",
        _LONG_SUMS,
    ),
    _fault(
        "cpu/recurrent/weight_gradients.h",
        "a-reversed-part-is-from-the-wrong-end",
        "part.first_row += done;",
        "part.last_row -= done;",
        _LONG_SUMS,
    ),
    _fault(
        "cpu/recurrent/weight_gradients.h",
        "a-tokens-gradient-is-its-last-ones",
        "to[j] += Product::rounded(from[j]);",
        "to[j] = Product::rounded(from[j]);",
        "cells/test_gradients.py::test_tokens_are_one_hot_rows",
    ),
    _fault(
        "cpu/recurrent/weight_gradients.h",
        "a-projections-gradient-is-of-another-delta",
        "(d < multiplied_ ? d : deltas_) * units_",
        "(d < multiplied_ ? d : 0) * units_",
        "cells/test_projection.py::test_against_torch",
    ),
    _fault(
        "cpu/recurrent/backward.h",
        "a-normalised-c-has-its-output-gates-gradient-from-nothing",
        "std::copy_n(dgate, units_, scratch_.delta_now[i] + cell_.output_gate * units_);",
        ";",
        _NORMS,
    ),
    _fault(
        "cpu/recurrent/normalization.h",
        "a-normalised-rows-length-has-a-gradient",
        "scaled(j, left) - mean - load_some<V>(normed + j, left) * along",
        "scaled(j, left) - mean",
        _NORMS,
    ),
    _fault(
        "cpu/recurrent/norm_gradients.h",
        "a-tokens-normalised-part-is-anothers",
        "problem_.tokens.slot ? problem_.tokens.slot[p] : p",
        "problem_.tokens.slot ? 0 : p",
        "cells/test_layer_norm.py::test_tokens_are_one_hot_rows",
    ),
    _fault(
        "cpu/recurrent/backward.h",
        "a-projections-gradient-counts-twice",
        "sum = V(T(0));",
        "static_cast<void>(0);",
        "cells/test_projection.py::test_against_torch",
    ),
    _fault(
        "cpu/recurrent/backward.h",
        "recurrent-dropout-is-forgotten-backward",
        "if (problem_.h_factors && a.factored >= 0)",
        "if (problem_.h_factors && a.factored < -1)",
        "layers/test_recurrent_dropout.py::test_against_the_reference",
    ),
    _fault(
        "cpu/recurrent/weight_gradients.h",
        "weights-gradients-take-the-whole-h",
        "h = h * load_some<V>(own_.factors[k] + unit, n);",
        "static_cast<void>(0);",
        "layers/test_recurrent_dropout.py::test_against_the_reference",
    ),
    _fault(
        "cpu/recurrent/zoneout.h",
        "zoneout-drops-the-gradient-of-what-is-kept",
        "add_row<V>(h_aside_ + aside, n, problem.dh + at);",
        "static_cast<void>(at);",
        "layers/test_zoneout.py::test_against_the_reference",
    ),
    _fault(
        "cpu/recurrent/backward.h",
        "h-is-made-of-a-c-that-was-kept",
        "(problem_.fresh_c ? problem_.fresh_c : problem_.cells)",
        "problem_.cells",
        "layers/test_zoneout.py::test_against_the_reference",
    ),
    _fault(
        "cpu/recurrent/step.h",
        "a-stream-has-no-zoneout",
        "zone_row<V>(problem_.zone_h, nullptr, fresh, problem_.h, size, problem_.h);",
        "std::copy_n(fresh, size, problem_.h);",
        "layers/test_zoneout.py::test_inference_is_what_is_expected",
    ),
    _fault(
        "bind/kept.h",
        "dropout-is-forgotten-backward",
        "own.set_product(own, mask)",
        "static_cast<void>(mask)",
        "layers/test_dropout.py::test_against_the_reference_with_the_same_masks",
    ),
    _fault(
        "bind/network.cpp",
        "what-is-right-as-it-stands-keeps-the-layers-order",
        "sizes_.batch_first && !unbatched",
        "false",
        "layers/test_straight.py::test_both_give_the_same_bits",
    ),
    _fault(
        "cpu/gemm/int8_product.h",
        "int8-rows-have-twice-their-scale",
        "float scale = largest / 127.0f + zero",
        "float scale = largest / 63.5f + zero",
        "kernels/test_int8.py::test_sums_are_exact",
    ),
    _fault(
        "cpu/gemm/int8_product.h",
        "a-later-part-of-an-int8-sum-begins-anew",
        "tile.start = tile.out, tile.start_row = tile.out_row, tile.start_panel = tile.out_panel;",
        "tile.start_row = tile.out_row, tile.start_panel = tile.out_panel;",
        "kernels/test_int8.py::test_a_sum_of_more_than_an_int32_holds",
    ),
    _fault(
        "cpu/recurrent/step.h",
        "a-later-phase-multiplies-the-state",
        "phase == 0 ? problem_.h : scratch_.operand",
        "problem_.h",
        _STREAM,
    ),
    _fault(
        "cpu/recurrent/step.h",
        "a-stream-has-no-bias",
        "starts[gate] = parameters.bias + (first + gate) * units;",
        "starts[gate] = nullptr;",
        _STREAM,
    ),
]

KERNEL_FAULTS = [*_CELLS, *_FUNCTIONS, *_TRAINING, *_LOOPS]
