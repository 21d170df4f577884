"""Greedy and beam search for the most likely sequence of tokens, and draws of sequences, with any function that gives
probabilities of next tokens.

Shapes: B sequences are searched at once. A of them are undecided, with k beams each. n hypotheses of each are kept. V
tokens, at most L steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# step(tokens [N], rows [N]) -> log P [N,V] of the next token. Row i extends row rows[i] of the last call by tokens[i].
# So the search can copy, drop and reorder rows. In the first call, rows are 0..B-1, the B sequences without a token.
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Generated:
    """The search's results: n of each of B sequences, one behind the other, the best first.

    Attributes:
        token_ids: [B·n,L'], without the start token, padded with the stop token.
        lengths: [B·n], the number of tokens, including the stop token unless the sequence reached the length limit
            first; 0 if fewer than n were found.
        log_likelihoods: [B·n], the sum of the tokens' log P, in float64; -inf if fewer than n were found.
    """

    token_ids: Tensor
    lengths: Tensor
    log_likelihoods: Tensor


class _Best:
    """The n best finished hypotheses of each sequence so far, the best first."""

    def __init__(self, sequences: int, count: int, max_length: int, stop: int, device: torch.device):
        self.scores = torch.full((sequences, count), -torch.inf, dtype=torch.float64, device=device)
        self.sums, self.lengths = self.scores.clone(), torch.zeros_like(self.scores, dtype=torch.long)
        self.token_ids, self._stop = torch.full((sequences, count, max_length), stop, device=device), stop

    def update(self, which: Tensor, scores_AK: Tensor, sums_AK: Tensor, tokens_AKl: Tensor) -> None:
        """Keep the hypotheses of the sequences ``which`` [A] that score higher than those before. Unfinished ones have
        the score -inf."""
        count, length = self.scores.shape[1], tokens_AKl.shape[2]
        # Stable: what has the score -inf in the lists below is none of the new ones.
        scores, order = torch.cat((self.scores[which], scores_AK), dim=1).sort(dim=1, descending=True, stable=True)
        kept = order[:, :count]
        lengths = torch.full_like(sums_AK, length, dtype=torch.long)
        tokens = F.pad(tokens_AKl, (0, self.token_ids.shape[2] - length), value=self._stop)
        self.scores[which] = scores[:, :count]
        self.sums[which] = torch.cat((self.sums[which], sums_AK), dim=1).gather(1, kept)
        self.lengths[which] = torch.cat((self.lengths[which], lengths), dim=1).gather(1, kept)
        self.token_ids[which] = _rows(torch.cat((self.token_ids[which], tokens), dim=1), kept)

    def found(self) -> Generated:
        """All that are kept."""
        token_ids = self.token_ids.flatten(0, 1)
        return Generated(token_ids[:, : self.lengths.max()], self.lengths.flatten(), self.sums.flatten())


@torch.no_grad()
def search(
    step: Step, start: Tensor, stop: int, *, beam_size: int, length_penalty: float, max_length: int, count: int = 1
) -> Generated:
    """The sequences of highest score, log-likelihood / length**length_penalty, that ``beam_size`` beams find.

    A step takes the 2 · beam_size best continuations of a sequence. Those among the first beam_size that end with the
    stop token are finished hypotheses. The best beam_size of the others are the next beams. A sequence is decided when
    no beam can reach a better score than the last of its ``count`` best hypotheses. One beam is greedy search, which
    ends with the first stop token.

    Args:
        step: log-probabilities of the next token, at most 0. -inf forbids a token.
        start: [B], the first token of each sequence.
        stop: the token that ends a sequence.
        beam_size: the number of beams of each sequence.
        length_penalty: above 0 it favours longer sequences, below 0 shorter ones. The stop token counts in the length.
        max_length: L. A sequence of this length ends even without the stop token.
        count: n, the hypotheses wanted of each sequence.

    Raises:
        ValueError: beam_size, max_length or count is below 1.
    """
    if min(beam_size, max_length, count) < 1:
        raise ValueError(f"beam_size, max_length and count have to be 1 or more: {beam_size}, {max_length}, {count}")
    width = 2 * beam_size if beam_size > 1 else 1
    which_A = torch.arange(len(start), device=start.device)
    best = _Best(len(start), count, max_length, stop, start.device)
    step_tokens, rows = start, which_A
    sums_Ak = torch.zeros(len(start), 1, dtype=torch.float64, device=start.device)
    tokens_Akl = start.new_empty(len(start), 1, 0)
    for length in range(1, max_length + 1):
        # The best of each row first, so that few values are kept and sorted.
        log_probs, ids = _top(step(step_tokens, rows), width)
        beams = sums_Ak.shape[1]
        totals = (sums_Ak.reshape(-1, 1) + log_probs).view(len(which_A), -1)
        sums_AC, flat = _top(totals, width)
        parents = flat // log_probs.shape[1]
        tokens_ACl = torch.cat(
            [_rows(tokens_Akl, parents), ids.view(len(which_A), -1).gather(1, flat).unsqueeze(2)], dim=2
        )
        ended = tokens_ACl[:, :, -1] == stop
        if length == max_length:
            ended = torch.ones_like(ended)
        if ended.any():
            scores = (sums_AC / length**length_penalty).masked_fill(~ended, -torch.inf)
            best.update(which_A, scores[:, :beam_size], sums_AC, tokens_ACl)
            sums_Ak, kept = _top(sums_AC.masked_fill(ended, -torch.inf), beam_size)
            tokens_Akl, parents = _rows(tokens_ACl, kept), parents.gather(1, kept)
        else:  # already sorted
            sums_Ak, tokens_Akl, parents = (x[:, :beam_size] for x in (sums_AC, tokens_ACl, parents))
        # The sum only decreases, so this bounds the score that the first beam can reach.
        reach = max_length if length_penalty > 0 else length + 1
        undecided = sums_Ak[:, 0] / reach**length_penalty > best.scores[which_A, -1]
        rows = parents + beams * torch.arange(len(which_A), device=start.device).unsqueeze(1)
        if not undecided.all():
            which_A, rows, sums_Ak, tokens_Akl = (x[undecided] for x in (which_A, rows, sums_Ak, tokens_Akl))
            if not len(which_A):
                break
        rows, step_tokens = rows.flatten(), tokens_Akl[:, :, -1].flatten()
    return best.found()


@torch.no_grad()
def sample(step: Step, start: Tensor, stop: int, *, count: int, max_length: int) -> Tensor:
    """``count`` sequences of each start token [B], each token drawn by its probability.

    Args:
        step, start, stop, max_length: as of :func:`search`.

    Returns:
        token ids [B * count, L'], those of a start token one behind the other, without it, and padded with the stop
        token.
    """
    words, rows = start, torch.arange(len(start), device=start.device)
    copies = rows.repeat_interleave(count)
    drawn: list[Tensor] = []
    ended = torch.zeros(len(copies), dtype=torch.bool, device=start.device)
    while len(drawn) < max_length and not ended.all():
        probabilities = step(words, rows).exp()
        if not drawn:
            probabilities, rows = probabilities[copies], copies
        else:
            rows = torch.arange(len(copies), device=start.device)
        words = probabilities.multinomial(1)[:, 0].masked_fill(ended, stop)
        drawn.append(words)
        ended = ended | (words == stop)
    return torch.stack(drawn, dim=1)


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest values of each row, in float64, and their indices. A shorter row gives all of its
    values."""
    largest, indices = values.topk(min(count, values.shape[1]))
    return largest.double(), indices


def _rows(values_ANl: Tensor, indices_AM: Tensor) -> Tensor:
    """The rows ``indices`` of each of the A sequences, [A,M,l]."""
    return values_ANl.gather(1, indices_AM.unsqueeze(2).expand(-1, -1, values_ANl.shape[2]))
