# SPDX-License-Identifier: Apache-2.0
"""What all recurrent layers share.

Shapes, with T steps, B rows of a batch, I inputs, H units, L layers and D directions: x (T, B, I),
y (T, B, D·H), or (T, B, H) where two directions are merged, every state (L·D, B, H).
``batch_first`` swaps the first two axes of x and y, and an x without its batch axis gives results
without theirs. Integer x (T, B) stands for one-hot rows.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex

from rnnkern._checks import Array, boolean, positive_int
from rnnkern.devices import Device, LayerSpec, Weights
from rnnkern.devices.merging import merged
from rnnkern.layers.arguments import Layout, State, check_dropout_key
from rnnkern.layers.configured import Configured
from rnnkern.layers.drops import NOTHING, Drops
from rnnkern.layers.marks import ZERO, asked
from rnnkern.layers.network import Network, run
from rnnkern.layers.parameter import Parameter
from rnnkern.layers.tape import Tape, run_taped
from rnnkern.layers.weights import parameter_kinds, parameter_names

if TYPE_CHECKING:
    from rnnkern.layers.frozen import Frozen
    from rnnkern.layers.stream import Stream


class Recurrent(Configured):
    """What all recurrent layers share. Use one of the subclasses.

    Args:
        input_size: I, features of x, or the number of tokens when x is integer.
        hidden_size: H, units of each layer and direction.
        num_layers: layers stacked on one another.
        bidirectional: also run from the last step to the first; y holds both directions' states.
        reverse: run from the last step to the first alone: y_t and the state are those of that
            direction, and y stays in the order of x.
        merge: what y is of two directions: "concat", side by side, or their "sum", "average" or
            "product", H wide, which is what the next layer gets too. States stay apart.
        activation: of the new value (and an LSTM's output): "tanh", or "relu", "hard_sigmoid",
            "softsign", "softplus", "identity", "affine", "leaky_relu", "elu", "thresholded_relu",
            "scaled_tanh", "sigmoid". Numbers that a function takes stand in brackets, as
            "leaky_relu(0.1)": α·x below 0; "elu(1.0)": α(eˣ - 1) below 0; "thresholded_relu(1.0)":
            0 up to α; "scaled_tanh(1.7159, 0.6667)": α·tanh(βx); "affine(2.0, 1.0)": αx + β;
            "hard_sigmoid(0.2, 0.5)": αx + β within 0..1, as Keras before 3, TensorFlow 1 and ONNX
            have it, where "hard_sigmoid" alone is x/6 + 1/2, as PyTorch and Keras 3. With
            bidirectional=True it may be a pair, one for each direction.
        recurrent_activation: of the gates, likewise.
        clip: a bound: pre-activations are held within ±clip, as ONNX's ``clip`` says; no gradient
            passes where they are.
        layer_norm: whether the sums that gates see are normalised (Ba et al. 2016,
            arXiv:1607.06450): W_x x_t and W_h h_{t-1} each by itself, over the units of a row, with
            gains of their own; in an LSTM also the c that h_t is made of. It needs
            ``device="cpu"`` and a cell with a recurrent matrix, and goes with neither
            ``recurrent_dropout`` nor ``zoneout``.
        zoneout: share of h that keeps its value of the step before, drawn for each step, row and
            unit in ``forward`` (Krueger et al. 2016, arXiv:1606.01305). Other calls, snapshots and
            streams have what that comes to in the mean: (1 - zoneout)·h_t + zoneout·h_{t-1}.
        batch_first: x and y are (B, T, ·).
        bias: whether there are bias parameters.
        dropout: share of each layer's output, but the last one's, that ``forward`` sets to zero;
            with one layer it does nothing, of which there is a warning.
        recurrent_dropout: share of h_{t-1} that ``forward`` sets to zero where a recurrent matrix
            multiplies it, the same numbers at all steps, and others for each row; the rest counts
            1/(1 - recurrent_dropout) times (Gal & Ghahramani 2016, arXiv:1512.05287). What goes to
            h_t beside the product, as in a GRU, stays whole. 0 where the cell
            has no such matrix.
        weight_drop: share of every ``weight_hh`` that ``forward`` sets to zero, the same for all
            its steps and rows; the others count 1/(1 - weight_drop) times (Merity et al. 2018,
            arXiv:1708.02182). 0 where the cell has no such matrix.
        dtype: "float32" or "float64", of parameters, input and output.
        compute: how products are done; None is exactly the dtype. "bfloat16", for float32 layers,
            rounds the operands of every matrix product (x, h, weights, the gradients of gates) to 8
            significant bits; sums, states, parameters and gradients stay float32. Tokens count as
            one-hot rows. "tfloat32" and "float16" do likewise and need ``device="cuda"``.
        device: "cpu" for NumPy's arrays, "cuda" for CuPy's on its current device.
        seed: of the initial parameters, which are uniform in ±1/√H.
        recurrent_init: "uniform", or "orthogonal" for each gate's recurrent matrix, where the cell
            has these.

    Attributes:
        params: name -> array, changed in place to learn (see `Parameters`). For layer k
            ``weight_ih_l{k}`` (G·H, I), ``weight_hh_l{k}`` (G·H, H), ``bias_l{k}`` (G·H) and, where
            the reset gate acts after the product, ``bias_hn_l{k}`` (H); the second direction's end
            in ``_reverse``. With ``layer_norm`` also ``gain_ih_l{k}`` and ``gain_hh_l{k}`` (G·H),
            1 at first, and where there is c ``gain_c_l{k}`` and, with a bias, ``shift_c_l{k}``
            (H), 0 at first. The constructor's arguments are attributes too; all are read-only.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; the message names it.

    Layers hold no hidden state: one may be called from several threads at once.

    On "cuda" parameters and results are CuPy arrays; arguments may be any arrays of that GPU (CuPy,
    PyTorch, JAX) and are not copied. Work is queued on CuPy's current stream, and no call waits for
    it, so values are not looked at: a token out of range counts as the nearest that is in it.

    Example:
        >>> layers = [rk.GRU(3, 4), rk.LSTM(3, 4)]
        >>> all(isinstance(layer, rk.Recurrent) for layer in layers)
        True
        >>> sorted(layers[0].params)
        ['bias_l0', 'weight_hh_l0', 'weight_ih_l0']

    """

    @cached_property
    def _network(self) -> Network:
        """What runs: the parameters' own arrays, by layer and direction."""
        layout = Layout(self._spec, self._device, self.batch_first, type(self).__name__)
        weights = [
            Weights.of(None if name is None else self._parameters[name].own for name in names)
            for names in parameter_names(self._spec)
        ]
        return Network(layout, weights)

    def __call__(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
        resets: Any = None,
        reset_to: str | State = "zero",
        segments: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
    ) -> tuple[Array, State]:
        """Run without keeping anything for a backward pass; there is no dropout.

        Args:
            x: (T, B, I) of the layer's dtype, or integer tokens (T, B) in 0..I-1; without the axis
                B for one sequence. Integers are tokens always, features (T, I) of integers have
                to be converted to the dtype first. Any strides; a last axis that is not
                contiguous is copied. T or B may be 0.
            state: the initial state, (L·D, B, H) or, for an LSTM, a pair of those; None, also as
                one of the pair, is zero.
            lengths: (B,) integers in 0..T, in host memory on every device. Past a row's length y
                is 0 and its state stays; the second direction starts at the row's own last step.
            out: where y goes; no two of its elements may share memory, nor may it share any with
                what the call reads: x, state and the parameters.
            resets: (T, B) bool, in host memory as the two below: where it is True the row's state
                begins anew before that step, as at the first step of an episode, and no gradient
                goes back across it. The second direction begins anew at the same places, on its
                way back.
            reset_to: what anew begins with: "zero", "initial" for what ``state`` gives the row, or
                a state of its own, shaped as ``state`` or with one row for all.
            segments: (T, B) integers of at least 0, for rows into which several sequences are
                packed: a row begins anew wherever the number changes. The first sequence begins
                with ``state``.
            mask: (T, B) bool: where it is False the row skips the step, wherever that is, and
                holds its state, also at the start, as for padding on the left.
            masked_output: what y is where ``mask`` is False: "zero", or "last" for the output of
                the step before it that was not skipped (of the second direction, after it), as
                Keras has it; where there is none, 0.

        With ``batch_first`` these three are (B, T), of one sequence (T,).

        Returns:
            y (T, B, D·H) and the last state, shaped as the initial one.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or range.

        """
        marks = None
        if not (resets is segments is mask is None and reset_to is masked_output is ZERO):
            marks = asked(resets, reset_to, segments, mask, masked_output)
        return run(self._network, x, state, lengths, out, marks)

    def forward(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
        dropout_key: SupportsIndex | None = None,
        recompute: SupportsIndex | None = None,
        tbptt: SupportsIndex | None = None,
        resets: Any = None,
        reset_to: str | State = "zero",
        segments: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
    ) -> tuple[Array, State, Tape]:
        """Run and keep what a backward pass needs; arguments and results as in a plain call.

        Args:
            dropout_key: an integer in 0..2**64-1 that picks the masks, needed when dropout or
                another such share is not 0. The same key gives the same masks, so give every step
                of training its own.
            recompute: k, for sequences whose tape would not fit in memory: of what is computed
                the state before every k-th step alone is kept, and ``tape.backward`` runs the
                steps between once more, k at a time, to the same bits. It takes about a third
                longer. Gradients are those without it but for the rounding of their sums. Such a
                tape has neither ``gates`` nor ``state_gradients``; with two directions it also
                keeps what a layer hands to the next. None keeps every step.
            tbptt: k, for truncated back-propagation through time: the state goes on through all
                steps, but its gradient, in every layer, goes back to the last multiple of k alone.
                y is the same, bit for bit. None goes back to the first step.
            resets: these five as in a plain call.
            reset_to: see there.
            segments: see there.
            mask: see there.
            masked_output: see there.

        Returns:
            y, the last state and a tape. The tape has its own copy of the parameters, but x, y and
            the initial state are kept as they are: leave them unchanged until ``tape.backward``.

        """
        drops = self._drops(dropout_key)
        marks = asked(resets, reset_to, segments, mask, masked_output)
        every = _piece("recompute", recompute, reset_to)
        truncated = _piece("tbptt", tbptt, reset_to)
        if truncated is not None and every is not None:
            raise ValueError(
                f"tbptt and recompute must not both be given, got {truncated} and {every}: with "
                "tbptt=k a call of k steps at a time has no need of recompute"
            )
        if truncated is not None and self.num_directions > 1:
            raise ValueError(
                f"tbptt needs a layer with bidirectional=False, got tbptt={truncated}: what "
                "comes from the end has no piece before it"
            )
        return run_taped(self._network, x, state, lengths, out, drops, every, truncated, marks)

    def freeze(self, *, weights: str | None = None) -> Frozen:
        """A packed snapshot of the parameters as they are now, to be called as the layer is.

        A call of the layer packs its weights anew, since they may have changed; those of a frozen
        layer are packed once. The fewer steps and rows a call has, the more that saves.

        Args:
            weights: "int8" keeps the weight matrices as whole numbers in -127..127, each row with a
                scale, and rounds x and h likewise as they come, so that products are of whole
                numbers; biases and state stay float32. None keeps them all.

        Raises:
            ValueError: int8 is asked of a layer of float64, with a `compute`, with `layer_norm`, or
                on a GPU.

        Example:
            >>> lstm, x = rk.LSTM(3, 4, seed=0), np.ones((5, 2, 3), np.float32)
            >>> y, _ = lstm.freeze(weights="int8")(x)
            >>> bool(np.abs(y - lstm(x)[0]).max() < 0.01)
            True

        """
        from rnnkern.layers.frozen import Frozen

        return Frozen(self._network, repr(self), weights)

    def stream(self, batch: int = 1, *, weights: str | None = None) -> Stream:
        """A stepper for sequences that arrive piece by piece.

        It holds a packed snapshot of the parameters as they are now, and the state of `batch` rows.

        Args:
            batch: rows, each a sequence of its own.
            weights: "bfloat16" rounds the snapshot's weight matrices to 8 significant bits, so that
                a step reads half the bytes; biases, state and sums stay float32. None keeps them,
                as a GPU must. A layer with compute="bfloat16" has them rounded in any case, and x
                and h with them. "int8" is a quarter of the bytes, and rounds x and h, as
                `freeze` says.

        Raises:
            ValueError: the layer also, or only, runs from the last step, so that its output needs
                the whole sequence; or it cannot have such weights: they need float32 and a CPU,
                and int8 a layer without `compute` and without `layer_norm`.

        """
        from rnnkern.layers.stream import Stream

        return Stream(self._network, positive_int("batch", batch, minimum=0), weights)

    def plan(self, steps: int, batch: int, *, training: bool = False) -> dict[str, Any]:
        """How the first layer, or launch of layers, of a call of that size is computed, and why.

        Args:
            steps: T.
            batch: B.
            training: whether a backward pass follows; it matters on a GPU alone.

        Returns:
            On a CPU "isa" and "threads" in use, "row_groups" and "unit_groups", the grid that the
            threads form over the batch and the units, and "product", what multiplies. On a GPU
            "path", "groups" that share the batch, "blocks_per_group" and "units_per_block" that
            share the units, "layers_per_launch", those that run as a wavefront in one launch, from
            the first up, and the bytes "shared_bytes" and "workspace_bytes". "reason" in words.

        """
        return self._device.plan(
            self._spec,
            positive_int("steps", steps),
            positive_int("batch", batch),
            training=boolean("training", training),
        )

    def to_torch(self, *, arrays: bool = False) -> dict[str, Any]:
        """The parameters as a state dict of ``torch.nn.RNN``, ``GRU`` or ``LSTM``.

        Rows are stacked as PyTorch has them, and a GRU's update rows are negated, for its z weighs
        h_{t-1}. Of its two biases the second is zero, but for the candidate's in a GRU, which is
        ``bias_hn``. `rnnkern.from_torch` of it gives the same bits again.

        Args:
            arrays: whether NumPy arrays are wanted, for which PyTorch need not be there, as
                ``safetensors.numpy.save_file`` takes them; else tensors.

        Raises:
            ImportError: PyTorch is not installed, and tensors are wanted.
            ValueError: PyTorch has no such cell; `rnnkern.torch` has.

        Example:
            >>> import torch
            >>> lstm, module = rk.LSTM(3, 4), torch.nn.LSTM(3, 4)
            >>> module.load_state_dict(lstm.to_torch())
            <All keys matched successfully>

        """
        from rnnkern.interop.state_dict import layer_to_torch

        return layer_to_torch(self, arrays=arrays)

    def last_output(
        self, y: Array, state: State, lengths: Any = None, *, mask: Any = None
    ) -> Array:
        """The last output of every row, of what a call gave: each direction's where it ends.

        It is h of the top layer, its directions side by side or merged as y is, and what ``dlast``
        of a tape's ``backward`` is the gradient in. A `Stack` has the same, for which the others
        matter.

        Args:
            y: as the call gave it.
            state: the last state, likewise.
            lengths: as the call was given them.
            mask: likewise.

        Returns:
            (B, output_size), or (output_size,) without a batch.

        """
        h = state[0] if isinstance(state, tuple) else state
        return merged(self._device.xp, self._spec, list(h[-self.num_directions :]))

    def to_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        state: bool = False,
        lengths: bool = False,
        tokens: bool = False,
    ) -> None:
        """Write an ONNX file that computes what a call of the layer does, for any T and B.

        Its input is ``x`` and its outputs are ``y``, ``h_n`` and, where the cell has it, ``c_n``,
        shaped as here. Cells that ONNX lacks are written as a GRU that computes the same. ONNX
        Runtime runs float32 alone. Extra ``interop``.

        Args:
            path: the file to write or to replace; it appears whole or not at all.
            state: whether the initial state is an input too: ``h_0`` and, where there is one,
                ``c_0``.
            lengths: whether ``lengths`` (B,), int32, is an input too.
            tokens: whether ``x`` is tokens (T, B), int64.

        Raises:
            ImportError: the ``onnx`` package is not installed.
            ValueError: ONNX has no operator for the cell, or the file would be over 2 GiB.

        Example:
            >>> import onnx
            >>> import onnxruntime
            >>> rk.LSTM(3, 4).to_onnx("lstm.onnx", lengths=True)
            >>> session = onnxruntime.InferenceSession("lstm.onnx")
            >>> x, lengths = np.ones((5, 2, 3), np.float32), np.array([5, 2], np.int32)
            >>> y, h_n, c_n = session.run(None, {"x": x, "lengths": lengths})

        """
        from rnnkern.interop.onnx.writing import write_layer

        write_layer(self, path, state=state, lengths=lengths, tokens=tokens)

    def _drops(self, given: SupportsIndex | None) -> Drops:
        """What a call of ``forward`` with that ``dropout_key`` drops."""
        key = None if given is None else check_dropout_key(given, 64)
        shares = self._shares
        if shares == NOTHING:
            return NOTHING
        if key is None:
            name, share = next((n, s) for n, s in shares._asdict().items() if s > 0.0)
            raise ValueError(f"dropout_key must be given when {name} is {share:g}, got None")
        return shares._replace(key=key)

    @cached_property
    def _shares(self) -> Drops:
        """What ``forward`` drops with any key."""
        return Drops(
            dropout=self.dropout if self.num_layers > 1 else 0.0,
            recurrent_dropout=self.recurrent_dropout,
            weight_drop=self.weight_drop,
            zoneout=self.zoneout,
            cell_zoneout=self._spec.cell_zoneout,
        )

    def _one_step(self, k: int, *, reverse: bool) -> tuple[LayerSpec, Device, dict[str, Parameter]]:
        """One layer and direction as a network of its own, and its parameters by their kinds."""
        step = self._spec.alone(k, int(reverse))._replace(reverse=False)
        names = parameter_names(self._spec)[k * self.num_directions + reverse]
        kinds = zip(parameter_kinds(self._spec), names, strict=True)
        own = {kind: self._parameters[name] for kind, name in kinds if kind and name}
        return step, self._device, own


def _piece(name: str, steps: SupportsIndex | None, reset_to: str | State) -> int | None:
    """Steps of the pieces that a forward pass is cut into, or None."""
    if steps is None:
        return None
    every = positive_int(name, steps)
    if not isinstance(reset_to, str) or reset_to != "zero":
        shown = repr(reset_to) if isinstance(reset_to, str) else "a state"
        raise ValueError(f"{name} needs reset_to='zero', got {shown}")
    return every


def one_step_of(
    layer: Recurrent, k: int, *, reverse: bool
) -> tuple[LayerSpec, Device, dict[str, Parameter]]:
    """What a cell shares with layer k of these, in one direction."""
    return layer._one_step(k, reverse=reverse)


def layout_of(layer: Recurrent) -> Layout:
    """How callers lay out a layer's arrays."""
    return layer._network.layout


def stream_of_tokens(layer: Recurrent, batch: int) -> Stream:
    """A stream for tokens alone, during whose life nobody may write to the layer's parameters.

    It copies none of them, and of a large vocabulary it packs no more than the tokens that come.
    """
    from rnnkern.layers.stream import Stream

    return Stream(layer._network, batch, by_token=True)
