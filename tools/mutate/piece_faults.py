# SPDX-License-Identifier: Apache-2.0
"""Faults in what stands around the layers, and in stacks and single steps of them."""

from __future__ import annotations

from fault import fault

_LAYERS = "python/rnnkern/layers"
_TRAINING = "python/rnnkern/training"

_PIECES = [
    fault(
        "python/rnnkern/devices/cuda.py",
        "a-tokens-later-rows-are-lost",
        "apart *= 2",
        "apart *= 3",
        "devices/test_device_pieces.py::test_embedding",
    ),
    fault(
        "python/rnnkern/devices/cuda.py",
        "a-tape-sees-peepholes-of-later",
        "None if unit_weights is None else unit_weights.copy()",
        "unit_weights",
        "devices/test_device_options.py::test_cells_with_peepholes",
        peers=True,
    ),
    fault(
        "python/rnnkern/devices/launches.py",
        "a-product-is-parted-by-another-layers-y",
        "spec.by_direction(passes[end - 1].y)",
        "spec.by_direction(passes[first - 1].y)",
        "devices/test_device_options.py::test_merged_directions_agree_with_the_reference",
    ),
    fault(
        f"{_LAYERS}/embedding.py",
        "an-embedding-takes-tokens-from-behind",
        "tokens.min() >= 0 and ",
        "",
        "layers/test_pieces.py::test_what_an_embedding_refuses",
    ),
    fault(
        f"{_LAYERS}/drops.py",
        "directions-by-themselves-have-one-mask",
        "drops.key, _OF_STATES + k)",
        "drops.key, _OF_STATES + k - drops.first)",
        "layers/test_recurrent_dropout.py::test_both_directions_in_pieces",
    ),
    fault(
        f"{_LAYERS}/dropout.py",
        "dropouts-mask-is-a-layers",
        "self.share, dropout_key, _STREAM)",
        "self.share, dropout_key, 0)",
        "layers/test_pieces.py::test_dropout_follows_from_its_key",
    ),
    fault(
        f"{_LAYERS}/layer_norm.py",
        "layer-norm-forgets-its-epsilon",
        "self.dtype.type(self.eps)",
        "self.dtype.type(1e-5)",
        "layers/test_pieces.py::test_layer_norm_agrees_with_pytorch",
        peers=True,
    ),
    fault(
        f"{_LAYERS}/layer_norm.py",
        "layer-norms-gradient-forgets-the-mean",
        "            dx -= dx.mean(axis=1, keepdims=True)\n",
        "",
        "layers/test_pieces.py::test_layer_norm_gradients_agree_with_finite_differences",
    ),
    fault(
        f"{_LAYERS}/cell.py",
        "a-cell-of-the-other-direction",
        "cell._share(layer, place, reverse=reverse)",
        "cell._share(layer, place)",
        "layers/test_cell.py::test_stacked_cells_in_both_directions_are_the_layer",
    ),
    fault(
        f"{_LAYERS}/cell.py",
        "a-steps-gradients-replace-those-of-later-ones",
        "total += own[name]",
        "total[...] = own[name]",
        "layers/test_cell.py::test_a_loop_is_the_layer",
    ),
    fault(
        f"{_LAYERS}/stack.py",
        "a-residual-connection-passes-the-end-of-a-row",
        "        if k == 0:",
        "        if k < 0:",
        "layers/test_stack.py::test_nothing_goes_round_past_a_rows_end",
    ),
    fault(
        f"{_LAYERS}/stack_tape.py",
        "a-residual-connections-gradient-passes-the-end",
        "                dy = whole.within(dy)\n",
        "                pass\n",
        "layers/test_stack.py::test_nothing_goes_round_past_a_rows_end",
    ),
    fault(
        f"{_LAYERS}/stack.py",
        "the-last-output-forgets-what-goes-round",
        "        if not self.residual[-1]:\n            return h",
        "        return h",
        "layers/test_stack.py::test_the_last_output_is_each_directions_own",
    ),
    fault(
        f"{_LAYERS}/stack.py",
        "a-stacks-layers-drop-alike",
        "dropout_key=keys[2 * k + 1],",
        "dropout_key=keys[1],",
        "layers/test_stack.py::test_dropout_follows_from_its_key_and_differs_by_layer",
    ),
    fault(
        f"{_LAYERS}/stack_stream.py",
        "a-held-row-of-a-stack-gets-its-x",
        "if k > 0 or mask is None:",
        "if k >= 0 or mask is None:",
        "layers/test_stack.py::test_rows_of_a_stream_idle_come_and_go",
    ),
    fault(
        f"{_LAYERS}/pieces.py",
        "a-reset-between-pieces-is-lost-on-the-way-back",
        "anew = marks.resets[edge]\n",
        "anew = marks.resets[edge] & False\n",
        "layers/test_piece_edges.py::test_tbptt_of_a_layer_that_runs_back_with_a_reset",
    ),
    fault(
        f"{_LAYERS}/stack_stream.py",
        "an-interrupted-step-stays-half-done",
        "            self.state = before\n",
        "            pass\n",
        "layers/test_stack.py::test_a_step_that_fails_above_leaves_the_states_below",
    ),
]

_LOSSES = [
    fault(
        f"{_TRAINING}/losses.py",
        "the-mean-is-over-masked-numbers-too",
        "count = np.maximum(xp.count_nonzero(counts), 1)",
        "count = given.size",
        "training/test_losses.py::test_losses_of_numbers_agree_with_pytorch",
        peers=True,
    ),
    fault(
        f"{_TRAINING}/losses.py",
        "hubers-line-is-a-parabola",
        "return slope * (difference - 0.5 * slope), slope",
        "return 0.5 * difference * difference, slope",
        "training/test_losses.py::test_losses_of_numbers_agree_with_finite_differences",
    ),
    fault(
        f"{_TRAINING}/losses.py",
        "a-weighted-mean-is-over-places",
        "whole = counted.sum(dtype=np.float64)",
        "whole = counted.astype(bool).sum(dtype=np.float64)",
        "training/test_losses.py::test_weights_and_smoothing_agree_with_pytorch",
        peers=True,
    ),
    fault(
        f"{_TRAINING}/losses.py",
        "smoothed-labels-ignore-the-weights",
        "astype(dtype) * weights",
        "astype(dtype) * (weights * 0 + 1)",
        "training/test_losses.py::test_weights_and_smoothing_agree_with_pytorch",
        peers=True,
    ),
    fault(
        f"{_TRAINING}/rmsprop.py",
        "rmsprop-is-never-centered",
        "np.subtract(square, root, out=root)",
        "root[...] = square",
        "training/test_optim.py::test_agrees_with_a_plain_reference",
    ),
    fault(
        f"{_TRAINING}/rmsprop.py",
        "rmsprop-hides-an-infinite-gradient",
        "np.multiply(step, 0.0, out=root)",
        "root[...] = 0.0",
        "training/test_optim.py::test_a_gradient_that_is_not_finite_shows",
    ),
    fault(
        f"{_TRAINING}/schedules.py",
        "a-schedule-after-another-goes-on-counting",
        "        return self.following(step - self.steps)\n\n    def __repr__",
        "        return self.following(step)\n\n    def __repr__",
        "training/test_schedules.py::test_agrees_with_pytorch",
        peers=True,
    ),
    fault(
        f"{_TRAINING}/optim.py",
        "a-schedule-stands-at-its-first-rate",
        "self._rate(self.steps) if callable",
        "self._rate(0) if callable",
        "training/test_schedules.py::test_an_optimizer_takes_the_rate_of_each_step",
    ),
]

PIECE_FAULTS = [*_PIECES, *_LOSSES]
