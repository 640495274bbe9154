"""Backbones by name: what turns the events that an entity has had into a memory of them, behind one interface.

A backbone reads T steps of B rows and says after each step what it remembers, (T, B, H). All that it needs of the steps
before is a `State`, bounded however long the history: a pass in chunks, in one piece or step by step gives the same
numbers, and padding at the end of a row changes nothing before it.

===============  ====================================================================================================
``lstm``         gates that learn what to keep (Hochreiter and Schmidhuber 1997); the default
``gru``          fewer gates and parameters (Cho et al. 2014)
``rnn``          plain tanh recurrence (Elman 1990): its gradient fades after some tens of steps
``conv``         dilated causal convolutions (Bai, Kolter and Koltun 2018) over the last `CONV_REACH` events
``transformer``  causal attention (Vaswani et al. 2017) over a window of keys, `WINDOW` events in each layer
``none``         no memory at all: zeros, so that a head knows the event and the averages of what is remembered alone
``bilstm``       an LSTM from each end: for whole sequences only, since it knows what came later
===============  ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.errors import ParameterError

State = tuple[Tensor, ...]
"""What is carried from step to step: the rows stand on axis 1 of each tensor; the first is the memory, (1, B, H)."""

KERNEL = 3  # taps of a convolution
DILATIONS = (1, 2, 4, 8, 16, 32)  # steps between the taps, layer by layer
CONV_REACH = 1 + (KERNEL - 1) * sum(DILATIONS)  # events that a convolution sees, the present one included
WINDOW = 64  # events that one layer of attention sees, the present one included
LAYERS = 2  # of attention
BOTH_ENDS = "bilstm"


class Backbone(Protocol):
    """What a memory asks of a backbone."""

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """Read T steps of B rows, (T, B, E) -> what is remembered after each step, (T, B, H), and the state."""

    def empty(self, rows: int) -> State:
        """State before the first event, B = `rows`; its memory is 0."""


class Lstm(nn.LSTM):
    """Long short-term memory; its state is the memory and the cell."""

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """(T, B, E) -> (T, B, H), and the state."""
        output, (memory, cell) = self(embedded, state)
        return output, (memory, cell)

    def empty(self, rows: int) -> State:
        """Zeros."""
        zeros = _zeros(next(self.parameters()), rows, self.hidden_size)
        return zeros, zeros


class Gru(nn.GRU):
    """Gated recurrent unit; its state is the memory."""

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """(T, B, E) -> (T, B, H), and the state."""
        output, memory = self(embedded, state[0])
        return output, (memory,)

    def empty(self, rows: int) -> State:
        """Zeros."""
        return (_zeros(next(self.parameters()), rows, self.hidden_size),)


class Rnn(nn.RNN):
    """Plain tanh recurrence; its state is the memory."""

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """(T, B, E) -> (T, B, H), and the state."""
        output, memory = self(embedded, state[0])
        return output, (memory,)

    def empty(self, rows: int) -> State:
        """Zeros."""
        return (_zeros(next(self.parameters()), rows, self.hidden_size),)


class Conv(nn.Module):
    """Residual layers of dilated causal convolutions; its state is what each layer's taps still reach back to."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(inputs, hidden)
        self.taps = nn.ModuleList(nn.Linear(KERNEL * hidden, hidden) for _ in DILATIONS)
        self.last = nn.LayerNorm(hidden)

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """(T, B, E) -> (T, B, H), and the state."""
        steps = len(embedded)
        x = self.first(embedded)
        carried = []
        for taps, dilation, before in zip(self.taps, DILATIONS, state[1:], strict=True):
            whole = torch.cat([before, x])
            seen = [whole[tap * dilation : tap * dilation + steps] for tap in range(KERNEL)]
            carried.append(whole[steps:])
            x = x + fn.silu(taps(torch.cat(seen, dim=2)))
        output = self.last(x)
        return output, (output[-1:], *carried)

    def empty(self, rows: int) -> State:
        """Zeros: as if zeros had come before."""
        like = self.first.weight
        before = [_zeros(like, rows, self.hidden, (KERNEL - 1) * dilation) for dilation in DILATIONS]
        return (_zeros(like, rows, self.hidden), *before)


class Transformer(nn.Module):
    """Pre-norm causal attention over a window; its state is the number of events, and the window's keys and values.

    Positions are distances: each head learns what it adds to the score of a key so many steps back (as in T5, Raffel et
    al. 2020). So nothing depends on where a history, or a chunk of it, begins.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(inputs, hidden)
        self.layers = nn.ModuleList(Attention(hidden) for _ in range(LAYERS))
        self.last = nn.LayerNorm(hidden)

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """(T, B, E) -> (T, B, H), and the state; in blocks of a window, so that scores stay small."""
        outputs = []
        for block in torch.split(embedded, WINDOW):
            number, x, carried = state[1], self.first(block), []
            for layer, at in zip(self.layers, range(2, len(state), 2), strict=True):
                x, keys, values = layer(x, number, state[at], state[at + 1])
                carried += [keys, values]
            outputs.append(self.last(x))
            state = (outputs[-1][-1:], (number + len(block)).clamp(max=WINDOW - 1), *carried)
        return torch.cat(outputs), state

    def empty(self, rows: int) -> State:
        """No event, and keys and values that are not looked at."""
        like = self.first.weight
        window = _zeros(like, rows, self.hidden, WINDOW - 1)
        return (_zeros(like, rows, self.hidden), like.new_zeros(1, rows), *([window] * 2 * LAYERS))


class Attention(nn.Module):
    """One layer: attention to the last `WINDOW` events, then a perceptron; both residual."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.heads = math.gcd(hidden, 4)
        self.norm, self.qkv, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.distance = nn.Parameter(torch.zeros(self.heads, WINDOW))
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden)
        )

    def forward(self, x: Tensor, number: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, B, H), events before it (1, B), their keys and values -> (T, B, H), and the keys and values to keep."""
        steps, rows, hidden = x.shape
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=2)
        keys, values = torch.cat([keys, key]), torch.cat([values, value])
        at = torch.arange(len(keys), device=x.device)
        away = at[WINDOW - 1 :, None] - at[None, :]  # steps from each query back to each key
        near = (away >= 0) & (away < WINDOW)
        known = at[None, :] >= WINDOW - 1 - number[0][:, None]
        bias = self.distance[:, away.clamp(0, WINDOW - 1)]
        score = self._split(query) @ self._split(keys).transpose(2, 3) / math.sqrt(hidden // self.heads) + bias
        score = score.masked_fill(~(near & known[:, None, None, :]), -math.inf)
        found = torch.softmax(score, dim=3) @ self._split(values)
        x = x + self.out(found.permute(2, 0, 1, 3).reshape(steps, rows, hidden))
        return x + self.mlp(x), keys[steps:], values[steps:]

    def _split(self, x: Tensor) -> Tensor:
        """(L, B, H) -> (B, heads, L, H / heads)."""
        return x.view(len(x), x.shape[1], self.heads, -1).permute(1, 2, 0, 3)


class Forgetful(nn.Module):
    """Remembers nothing: its memory is 0 after any event."""

    def __init__(self, inputs: int, hidden: int) -> None:  # noqa: ARG002 (as the others)
        super().__init__()
        self.hidden = hidden
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # knows the device

    def read(self, embedded: Tensor, state: State) -> tuple[Tensor, State]:
        """(T, B, E) -> zeros (T, B, H), and the state."""
        return embedded.new_zeros(*embedded.shape[:2], self.hidden), state

    def empty(self, rows: int) -> State:
        """Zeros."""
        return (self.get_buffer("zero").new_zeros(1, rows, self.hidden),)


CAUSAL: dict[str, Callable[[int, int], Backbone]] = {
    "lstm": Lstm,
    "gru": Gru,
    "rnn": Rnn,
    "conv": Conv,
    "transformer": Transformer,
    "none": Forgetful,
}


def check_backbone(who: str, name: str, *, whole: bool = False) -> None:
    """Refuse a name that is no backbone, or one that looks ahead where each event is judged by its past (not `whole`).

    Raises
    ------
    ParameterError
        That tells which names there are, or what the backbone is for.
    """
    if name == BOTH_ENDS and not whole:
        raise ParameterError(
            f"{who}: backbone='{BOTH_ENDS}' reads from both ends, so that later events would change what is said of "
            f"earlier ones; it is for whole sequences (level='sequence' of Classifier and Regressor). "
            f"Choose one of {', '.join(CAUSAL)}"
        )
    if name not in (*CAUSAL, BOTH_ENDS):
        raise ParameterError(f"{who}: backbone must be one of {', '.join((*CAUSAL, BOTH_ENDS))}, got {name!r}")


def _zeros(like: Tensor, rows: int, hidden: int, steps: int = 1) -> Tensor:
    return like.new_zeros(steps, rows, hidden)
