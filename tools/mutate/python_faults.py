# SPDX-License-Identifier: Apache-2.0
"""Faults in Python."""

from __future__ import annotations

from bench_faults import BENCH_FAULTS
from fault import fault
from interop_faults import INTEROP_FAULTS
from piece_faults import PIECE_FAULTS

_BENCH = "python/rnnkern/bench"
_PACKAGE = "python/rnnkern"

# -- optimizers, clipping, loss ------------------------------------------------------------------

_NUMPY = "training/test_optim.py::test_agrees_with_a_plain_reference"
_TRAINING = [
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adam-without-first-bias-correction",
        "1.0 - first_beta**self.steps",
        "1.0",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adam-without-second-bias-correction",
        "1.0 - second_beta**self.steps",
        "1.0",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adams-epsilon-is-outside-the-mean",
        "self.eps * root_n",
        "self.eps",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adam-ignores-its-epsilon",
        "self.eps * root_n",
        "1e-8 * root_n",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "decay-without-the-rate",
        "1.0 - rate * self.weight_decay",
        "1.0 - self.weight_decay",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adam-ignores-the-rate-of-a-step",
        "rate * root_n / first_n",
        "self.lr * root_n / first_n",
        "training/test_optim.py::test_gradients_are_left_alone_and_the_rate_of_a_step_is_its_own",
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adams-default-betas-are-wrong",
        "betas: tuple[float, float] = (0.9, 0.999)",
        "betas: tuple[float, float] = (0.9, 0.99)",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "adams-default-epsilon-is-wrong",
        "eps: float = 1e-8",
        "eps: float = 1e-6",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "sgd-without-momentum",
        "velocity *= self.momentum",
        "velocity *= 0.0",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "nesterov-is-plain-momentum",
        "if self.nesterov:",
        "if False:",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "sgd-decays-the-wrong-way",
        "np.multiply(p, self.weight_decay, out=scratch)",
        "np.multiply(p, -self.weight_decay, out=scratch)",
        _NUMPY,
    ),
    fault(
        f"{_PACKAGE}/training/optim.py",
        "a-state-is-not-a-copy",
        'f"{kind}.{name}": array.copy()',
        'f"{kind}.{name}": array',
        "training/test_optim.py::test_resumes_bit_for_bit",
    ),
    fault(
        f"{_PACKAGE}/training/clip.py",
        "gradients-are-clipped-to-twice-the-norm",
        "        if norm > max_norm:",
        "        if norm > 2 * max_norm:",
        "training/test_clip.py::test_the_norm_is_bounded_at_any_size",
    ),
    fault(
        f"{_PACKAGE}/training/losses.py",
        "the-loss-is-a-sum",
        "return total * weight, ",
        "return total, ",
        "training/test_losses.py::test_gradient_agrees_with_finite_differences",
    ),
    fault(
        f"{_PACKAGE}/training/losses.py",
        "the-mean-counts-masked-places",
        "count = int(np.count_nonzero(mask))",
        "pass",
        "training/test_losses.py::test_masked_places_do_not_matter",
    ),
]

# -- layers and models ---------------------------------------------------------------------------

_LAYERS = [
    fault(
        f"{_PACKAGE}/layers/base.py",
        "frozen-without-its-snapshot",
        "network.snapshot(network.layout)",
        "network",
        "layers/test_frozen.py::test_it_is_a_snapshot",
    ),
    fault(
        f"{_PACKAGE}/layers/stream.py",
        "a-stream-without-its-snapshot",
        "network.snapshot(replace(network.layout, batch_first=False))",
        "Network(replace(network.layout, batch_first=False), network.weights)",
        "layers/test_stream.py::test_weights_are_a_snapshot",
    ),
    fault(
        f"{_PACKAGE}/layers/tape.py",
        "an-unstable-sort-of-lengths",
        'np.argsort(-lengths, kind="stable")',
        "np.argsort(-lengths)",
        "cells/test_state_gradients.py::test_rows_of_a_large_batch_keep_their_places",
    ),
    fault(
        f"{_PACKAGE}/devices/launches.py",
        "dropout-is-forgotten-backward-on-a-gpu",
        "dy = masked(below, masks[first - 1]) if masks else below",
        "dy = below",
        "devices/test_device.py::test_dropout_draws_the_same_masks",
    ),
    fault(
        f"{_PACKAGE}/layers/weights.py",
        "orthogonal-values-without-the-sign",
        "q * np.sign(np.diag(r))",
        "q",
        "layers/test_initial_values.py::test_orthogonal_matrices_are_of_either_sign",
    ),
    fault(
        f"{_PACKAGE}/layers/weights.py",
        "orthogonal-is-uniform",
        'if name.startswith("weight_hh") and recurrent_init == "orthogonal"',
        'if name.startswith("weight_hx") and recurrent_init == "orthogonal"',
        "cells/test_properties.py::test_orthogonal_recurrent_matrices",
    ),
    fault(
        f"{_PACKAGE}/layers/weights.py",
        "initial-values-in-another-range",
        "bound = spec.units**-0.5",
        "bound = spec.units**-1.0",
        "layers/test_initial_values.py::test_uniform_values_fill_their_range",
    ),
    fault(
        f"{_PACKAGE}/layers/weights.py",
        "initial-values-of-one-sign",
        "random.uniform(-bound, bound, shape)",
        "random.uniform(0, bound, shape)",
        "layers/test_initial_values.py::test_uniform_values_fill_their_range",
    ),
    fault(
        f"{_PACKAGE}/layers/linear.py",
        "linears-initial-values-in-another-range",
        "bound = self.in_features**-0.5",
        "bound = self.out_features**-0.5",
        "layers/test_initial_values.py::test_linears_values_are_bounded_by_its_inputs",
    ),
    fault(
        f"{_PACKAGE}/cells/lstm.py",
        "the-forget-bias-at-another-gate",
        'blocks[self.gates.index("f")] = self.forget_bias',
        'blocks[self.gates.index("u")] = self.forget_bias',
        "cells/test_properties.py::test_forget_bias_fills_its_gate_alone",
    ),
    fault(
        f"{_PACKAGE}/layers/network.py",
        "dropout-keeps-what-it-should-drop",
        ">= np.float32(share)",
        "< np.float32(share)",
        "layers/test_dropout.py::test_factors_keep_the_mean",
    ),
    fault(
        f"{_PACKAGE}/layers/network.py",
        "dropout-does-not-scale",
        "dtype.type(1.0 / (1.0 - share))",
        "dtype.type(1.0)",
        "layers/test_dropout.py::test_factors_keep_the_mean",
    ),
    fault(
        f"{_PACKAGE}/layers/network.py",
        "one-dropout-mask-for-all-layers",
        "dropout, key, layer, first)",
        "dropout, key, 0, first)",
        "layers/test_dropout.py::test_no_two_steps_rows_units_layers_or_keys_share_a_mask",
    ),
    fault(
        f"{_PACKAGE}/layers/recompute.py",
        "masks-of-every-piece-are-the-first-ones",
        "self._dropout, self._key, span.start)",
        "self._dropout, self._key, 0)",
        "layers/test_recompute.py::test_of_any_k_and_lengths_in_a_stack_with_dropout",
    ),
    fault(
        f"{_PACKAGE}/devices/philox.py",
        "nine-rounds-of-philox",
        "_ROUNDS = 10",
        "_ROUNDS = 9",
        "devices/test_device.py::test_random_numbers_are_numpys",
    ),
    fault(
        f"{_PACKAGE}/layers/linear.py",
        "linears-tape-sees-later-weights",
        "layer._weight.own.copy()",
        "layer._weight.own",
        "layers/test_linear.py::test_a_tape_keeps_its_own_weights",
    ),
    fault(
        f"{_PACKAGE}/layers/arguments.py",
        "backward-writes-into-dstate",
        "return h.copy(), None if c is None else c.copy()",
        "return h, c",
        "cells/test_properties.py::test_arguments_are_left_alone",
    ),
    fault(
        f"{_PACKAGE}/layers/stream.py",
        "reset-clears-the-other-rows",
        "np.flatnonzero(self._mask(mask)) if by_mask",
        "np.flatnonzero(~self._mask(mask)) if by_mask",
        "layers/test_stream.py::test_reset_touches_only_the_masked_rows",
    ),
    fault(
        f"{_PACKAGE}/layers/stream.py",
        "ties-round-up-to-bfloat16",
        "0x7FFF + ((bits >> 16) & 1)",
        "0x8000",
        "layers/test_stream.py::test_bfloat16_weights_half_way_between_two_are_rounded_to_the_even_one",
    ),
    fault(
        f"{_PACKAGE}/models/seq2seq.py",
        "one-dropout-key-for-encoder-and-decoder",
        "keys = 2 * key, 2 * key + 1",
        "keys = 2 * key, 2 * key",
        "models/test_seq2seq.py::test_no_two_keys_drop_the_same_units",
    ),
    fault(
        f"{_PACKAGE}/models/bridge.py",
        "the-directions-are-not-side-by-side",
        "s.reshape(layers, directions, rows, size).transpose(0, 2, 1, 3)",
        "s.reshape(layers, directions, rows, size)[:, ::-1].transpose(0, 2, 1, 3)",
        "models/test_seq2seq.py::test_gradients_agree_with_finite_differences",
    ),
    fault(
        f"{_PACKAGE}/models/decoding.py",
        "the-length-penalty-is-forgotten",
        "** length_penalty",
        "** 0.0",
        "models/test_seq2seq.py::test_an_exhaustive_beam_finds_the_best_answer",
    ),
    fault(
        f"{_PACKAGE}/models/decoding.py",
        "an-ended-answer-pays-for-its-end-again",
        "xp.where(xp.arange(branches) == 0, 0.0, -np.inf)",
        "xp.where(xp.arange(branches) == 0, -1.0, -np.inf)",
        "models/test_seq2seq.py::test_beam_scores_are_those_of_its_answers",
    ),
    fault(
        f"{_PACKAGE}/models/attention.py",
        "attention-sees-padding",
        "scores = xp.where(self._seen, scores, -np.inf)",
        "pass",
        "models/test_seq2seq_training.py::test_attention_is_what_pytorch_computes",
        "models/test_seq2seq.py::test_a_row_does_not_see_its_neighbours",
    ),
    fault(
        f"{_PACKAGE}/training/run.py",
        "a-resumed-epoch-begins-anew",
        "self.epoch, self.batch, self.without_gain = int(epoch), int(batch), int(without_gain)",
        "self.epoch, self.batch, self.without_gain = int(epoch), 0, int(without_gain)",
        "training/test_fit.py::test_an_interrupted_run_ends_as_if_it_had_not_been",
    ),
    fault(
        f"{_PACKAGE}/layers/stream.py",
        "idle-rows-lose-their-state",
        "self._states[:, :, chosen] = states",
        "self._states[...] = 0; self._states[:, :, chosen] = states",
        "layers/test_stream_rows.py::test_idle_rows_hold_their_state",
    ),
]

# -- the adder, the programs, the command line -----------------------------------------------------

_PROGRAMS = [
    fault(
        f"{_PACKAGE}/adder/training.py",
        "the-adder-does-not-clip",
        "clip_grad_norm(grads, settings.clip)",
        "clip_grad_norm(grads, 1e30)",
        "models/test_adder.py::test_gradients_are_clipped",
    ),
    fault(
        f"{_PACKAGE}/adder/training.py",
        "the-adders-rate-does-not-rise",
        "if fraction < _WARM_UP:",
        "if False:",
        "models/test_adder.py::test_the_learning_rate_rises_then_falls_to_nothing",
    ),
    fault(
        f"{_PACKAGE}/adder/training.py",
        "the-adders-rate-does-not-fall",
        "return max(0.0, (1.0 - fraction) / (1.0 - _WARM_UP))",
        "return 1.0",
        "models/test_adder.py::test_the_learning_rate_rises_then_falls_to_nothing",
    ),
    fault(
        f"{_PACKAGE}/adder/task.py",
        "the-adder-learns-held-out-pairs",
        "bits % np.uint64(self.trained)",
        "bits % np.uint64(self.count)",
        "models/test_adder_task.py::test_training_never_sees_a_held_out_pair",
    ),
    fault(
        f"{_PACKAGE}/adder/task.py",
        "the-adder-is-asked-what-it-learned",
        "self.at(self.trained + np.arange(size, dtype=np.int64)",
        "self.at(np.arange(size, dtype=np.int64)",
        "models/test_adder_task.py::test_training_never_sees_a_held_out_pair",
    ),
    fault(
        f"{_PACKAGE}/adder/model.py",
        "a-part-right-rounds-to-all-right",
        "self.right * 1_000_000 // self.total / 10_000",
        "round(self.right / self.total, 4) * 100",
        "models/test_adder.py::test_scores",
    ),
    fault(
        f"{_PACKAGE}/adder/task.py",
        "the-question-is-not-reversed",
        "tokens[: self.digits] = b // self._places[:-1] % 10",
        "tokens[: self.digits] = b // self._places[:-1][::-1] % 10",
        "models/test_adder_task.py::test_questions_and_answers_are_encoded_as_documented",
    ),
    fault(
        f"{_PACKAGE}/explore/model.py",
        "the-programs-do-not-clip",
        "clip_grad_norm(grads, self.clip)",
        "clip_grad_norm(grads, 1e30)",
        "explore/test_explore_common.py::test_gradients_are_clipped",
    ),
    fault(
        f"{_PACKAGE}/explore/run.py",
        "the-programs-rate-does-not-fall",
        "min(1.0, (steps - step) / (decay * steps)) if decay else 1.0",
        "1.0",
        "explore/test_explore_common.py::test_the_rate_falls_in_the_last_steps",
    ),
    fault(
        f"{_PACKAGE}/explore/result.py",
        "the-spread-is-of-the-first-seeds",
        "Spread(statistics.median(numbers), min(numbers), max(numbers))",
        "Spread(statistics.median(numbers), numbers[0], numbers[-1])",
        "explore/test_explore_common.py::test_spread",
    ),
    fault(
        f"{_PACKAGE}/models/readout.py",
        "the-mean-is-over-padding-too",
        "(1.0 / np.maximum(self._lengths, 1)).astype",
        "np.full(len(self._lengths), 1.0 / self._shape[self._axis]).astype",
        "models/test_model.py::test_padding_does_not_count",
    ),
    fault(
        f"{_PACKAGE}/explore/clipping.py",
        "clipping-by-value-clips-by-norm",
        "clip_grad_value(grads, _MOST_VALUE)",
        "clip_grad_norm(grads, _MOST_VALUE)",
        "explore/test_explore_clipping.py::test_the_clippers_bound_what_they_say",
    ),
    fault(
        f"{_PACKAGE}/cli.py",
        "an-error-exits-with-0",
        "        return 2\n",
        "        return 0\n",
        "models/test_cli.py::test_errors_have_no_traceback",
    ),
    fault(
        f"{_PACKAGE}/cli.py",
        "an-interrupt-exits-with-1",
        "        return 130\n",
        "        return 1\n",
        "models/test_cli.py::test_interrupted",
    ),
    fault(
        f"{_PACKAGE}/serialize.py",
        "an-altered-file-is-read",
        "if digest.hexdigest() != metadata[SUM]:",
        "if not metadata[SUM]:",
        "files/test_foreign_files.py::test_every_altered_byte_is_noticed",
    ),
    fault(
        f"{_BENCH}/command.py",
        "a-record-names-no-version-of-the-libraries",
        '        facts["versions"].update(native.versions())\n',
        "",
        "bench/test_bench_contenders.py::test_records_name_the_libraries_versions",
    ),
    fault(
        f"{_BENCH}/documents.py",
        "a-document-is-not-made-from-its-record",
        'return f"{begin}{make(*records)}\\n{end}"',
        "return match.group()",
        "project/test_documents.py::test_the_command_makes_a_table_anew",
    ),
    fault(
        f"{_BENCH}/documents.py",
        "a-span-is-its-median-and-its-greatest",
        "(min(numbers), max(numbers))",
        "(sorted(numbers)[len(numbers) // 2], max(numbers))",
        "project/test_documents.py::test_tables_of_layers",
    ),
    fault(
        f"{_PACKAGE}/record.py",
        "a-record-names-no-commit",
        '        "build": build(),\n',
        "",
        "bench/test_record.py::test_facts",
    ),
]

PYTHON_FAULTS = [
    *BENCH_FAULTS,
    *INTEROP_FAULTS,
    *PIECE_FAULTS,
    *_TRAINING,
    *_LAYERS,
    *_PROGRAMS,
]
