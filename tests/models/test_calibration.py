"""NLL and ECE against their definitions."""

import numpy as np
import pytest
import torch

from snella_seg.models import CalibrationMetric


def samples(count=3, classes=4, size=(6, 5), scale=2.0):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(0, classes, (1, *size), generator=generator)
        labels[0, 0] = 255
        logits = scale * torch.randn(classes, *size, generator=generator)
        made.append(dict(seg_logits=dict(data=logits), gt_sem_seg=dict(data=labels)))
    return made


def evaluate(made, batches=1):
    metric = CalibrationMetric()
    for part in np.array_split(np.arange(len(made)), batches):
        metric.process({}, [made[i] for i in part])
    return metric.compute_metrics(metric.results)


def test_figures_are_the_definitions():
    made = samples()
    probabilities = torch.cat([s["seg_logits"]["data"].softmax(0).flatten(1) for s in made], 1).T
    labels = torch.cat([s["gt_sem_seg"]["data"].flatten() for s in made])
    known = labels != 255
    probabilities, labels = probabilities[known], labels[known]
    nll = -probabilities[torch.arange(len(labels)), labels].log().mean()
    confidence, predicted = probabilities.max(1)
    ece = 0.0
    for i in range(15):
        inside = (confidence * 15).long().clamp_max(14) == i
        if inside.any():
            gap = (predicted == labels)[inside].float().mean() - confidence[inside].mean()
            ece += float(gap.abs() * inside.float().mean())
    found = evaluate(made)
    assert found["NLL"] == pytest.approx(float(nll), abs=1e-4)
    assert found["ECE"] == pytest.approx(100 * ece, abs=1e-2)
    assert evaluate(made, batches=3) == found


def test_certain_and_right_is_perfect():
    made = samples(1)
    labels = made[0]["gt_sem_seg"]["data"][0]
    logits = 50.0 * torch.nn.functional.one_hot(labels.clamp_max(3), 4).permute(2, 0, 1)
    made[0]["seg_logits"]["data"] = logits
    assert evaluate(made) == {"NLL": 0.0, "ECE": 0.0}


def test_nothing_known():
    made = samples(1)
    made[0]["gt_sem_seg"]["data"][:] = 255
    assert all(np.isnan(value) for value in evaluate(made).values())


def test_a_single_logit_is_refused():
    made = samples(1)
    made[0]["seg_logits"]["data"] = made[0]["seg_logits"]["data"][:1]
    with pytest.raises(ValueError, match="a logit for each class"):
        evaluate(made)
