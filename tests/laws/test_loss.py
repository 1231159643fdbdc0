"""The loss is the weighted sum of its terms, and the energy term pushes where it should."""

import torch
import torch.nn.functional as F

from rjem_cli.engine.training.loss import robust_jem_loss

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])


def test_without_the_energy_term_it_is_the_cross_entropy():
    terms = robust_jem_loss(LOGITS, LABELS, None, px_weight=0)
    torch.testing.assert_close(terms.total, F.cross_entropy(LOGITS, LABELS))
    assert terms.energy_gap == 0


def test_the_total_is_the_weighted_sum_of_the_named_terms():
    energies = (torch.randn(6), torch.randn(6))
    terms = robust_jem_loss(LOGITS, LABELS, energies, ce_weight=1.3, px_weight=0.7, energy_l2=0.2)
    expected = 1.3 * terms.cross_entropy + 0.7 * terms.energy_gap + 0.2 * terms.energy_penalty
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(terms.energy_gap, energies[0].mean() - energies[1].mean())


def test_descending_it_lowers_the_energy_of_data_and_raises_that_of_samples():
    data, sampled = torch.zeros(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    robust_jem_loss(LOGITS, LABELS, (data, sampled)).total.backward()
    assert data.grad is not None and sampled.grad is not None
    assert (data.grad > 0).all() and (sampled.grad < 0).all()
