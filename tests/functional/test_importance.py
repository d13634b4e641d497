import pytest
import torch

from snella_seg.functional import ema_importance, importance_score


def test_written_formula():
    sensitivity, average, uncertainty = torch.rand(3, 4, 5).unbind()
    new_average, new_uncertainty = ema_importance(sensitivity, average, uncertainty, 0.85, 0.7)
    expected = 0.85 * average + 0.15 * sensitivity
    torch.testing.assert_close(new_average, expected)
    torch.testing.assert_close(
        new_uncertainty, 0.7 * uncertainty + 0.3 * (sensitivity - expected).abs()
    )
    score = importance_score(new_average, new_uncertainty)
    torch.testing.assert_close(score, (new_average * new_uncertainty).sum() / 20)


def test_values_that_are_not_finite_count_as_zero():
    bad = torch.tensor([float("nan"), float("inf"), 1.0])
    average, uncertainty = ema_importance(bad, torch.ones(3), torch.ones(3), 0.5, 0.5)
    expected = ema_importance(torch.tensor([0.0, 0.0, 1.0]), torch.ones(3), torch.ones(3), 0.5, 0.5)
    torch.testing.assert_close((average, uncertainty), expected)


def test_decay_rates_out_of_range():
    with pytest.raises(ValueError, match="beta2"):
        ema_importance(*torch.ones(3, 2).unbind(), 0.5, 1.5)
