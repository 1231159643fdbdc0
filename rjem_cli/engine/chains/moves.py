"""A chain or an attack as moves: it asks for the gradient of an objective at x, is told, and asks again. Independent
ones can so share their network passes, which a device does faster than one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> whatever objectives read, (B, ...)
Objective = Callable[[Tensor], Tensor]  # what the network gave for x -> (B,)


class Question(NamedTuple):
    """x (B, C, H, W), and the objective whose gradient is wanted there."""

    x: Tensor
    objective: Objective


class Answer(NamedTuple):
    """The objective at x, (B,), and its gradient, shaped like x."""

    value_B: Tensor
    gradient: Tensor


Moves = Generator[Question, Answer, Tensor]  # ends with the last x


def ask(network: Network, questions: list[Question]) -> list[Answer]:
    """Answers to all of them, from one pass forward and backward. Rows must be independent in the network, as they are
    with frozen BatchNorm; gradients flow to x only, never to parameters."""
    sizes = [len(question.x) for question in questions]
    x = questions[0].x if len(questions) == 1 else torch.cat([question.x for question in questions])
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        outputs = network(x).split(sizes)
        values = [question.objective(output) for question, output in zip(questions, outputs)]
        (gradient,) = torch.autograd.grad(torch.cat(values).sum(), x)
    return [Answer(value_B.detach(), part) for value_B, part in zip(values, gradient.split(sizes))]


def walk(network: Network, chain: Moves) -> Tensor:
    """The last x of one chain, a pass a move."""
    (x,) = together(network, chain)
    return x


def together(network: Network, *chains: Moves, shared: bool = True) -> list[Tensor]:
    """The last x of each, run side by side: a round of moves is one pass, as long as any chain goes on, or where they
    are not `shared` one each. No host sync."""
    ended: dict[int, Tensor] = {}
    answers: dict[int, Answer | None] = dict.fromkeys(range(len(chains)))
    while answers:
        asked: dict[int, Question] = {}
        for place, answer in answers.items():
            try:
                asked[place] = next(chains[place]) if answer is None else chains[place].send(answer)
            except StopIteration as end:
                ended[place] = end.value.detach()
        questions = [list(asked.values())] if shared and asked else [[question] for question in asked.values()]
        answers = dict(zip(asked, (answer for group in questions for answer in ask(network, group))))
    return [ended[place] for place in range(len(chains))]
