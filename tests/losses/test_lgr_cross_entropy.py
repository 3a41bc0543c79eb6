"""LGR cross-entropy: loops from the specification, the printed checkpoints, the gradient it states."""

import math

import pytest
import torch

from longtail.losses import LGRCrossEntropy, SigmoidCrossEntropy, SoftmaxCrossEntropy


def inputs(rows, columns, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2
    return logits.requires_grad_(), torch.randint(0, classes + 1, (rows,), generator=generator)


def rho_of(g, alpha, gamma):
    b = math.exp(gamma / alpha) - 1
    return alpha * b if g == 0 else alpha * math.log(b * g + 1) / g


def softmax_loop(z, y, alpha, gamma, norm, allowed):
    total = sum(math.exp(v) for k, v in enumerate(z) if allowed[k])
    p = [math.exp(v) / total if allowed[k] else 0.0 for k, v in enumerate(z)]
    errors = [p[k] - (k == y) for k in range(len(z))]
    g = {
        "target": 1 - p[y],
        "l1_half": sum(abs(e) for e in errors) / 2,
        "l2": math.sqrt(sum(e * e for e in errors)),
    }[norm]
    rho = rho_of(g, alpha, gamma)
    return -rho * math.log(p[y]), [rho * e for e in errors]


def sigmoid_loop(z, y, alpha, gamma, allowed):
    value, gradient = 0.0, []
    for k, v in enumerate(z):
        if not allowed[k]:
            gradient.append(0.0)
            continue
        s, t = 1 / (1 + math.exp(-v)), float(k == y)
        rho = rho_of(abs(s - t), alpha, gamma)
        value -= rho * math.log(s if t else 1 - s)
        gradient.append(rho * (s - t))
    return value, gradient


@pytest.mark.parametrize(("alpha", "gamma"), [(0.8, 1.0), (0.5, 1.0), (1.0, 1.0), (0.5, 1.5)])
@pytest.mark.parametrize("form", ["target", "l1_half", "l2", "sigmoid", "sigmoid+background"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_loops_gradients_included(alpha, gamma, form, masked):
    if form.startswith("sigmoid"):
        loss = LGRCrossEntropy(4, alpha=alpha, gamma=gamma, form="sigmoid", background_logit=form != "sigmoid")
    else:
        loss = LGRCrossEntropy(4, alpha=alpha, gamma=gamma, norm=form)
    logits, labels = inputs(12, loss.num_logits, 4)
    mask = torch.rand(12, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    value = loss(logits, labels, class_mask=mask if masked else None)
    value.backward()
    total = 0.0
    for row in range(12):
        z, y = logits[row].tolist(), int(labels[row])
        allowed = [not masked or k == 4 or k == y or bool(mask[row, k]) for k in range(loss.num_logits)]
        if form.startswith("sigmoid"):
            own, gradient = sigmoid_loop(z, y, alpha, gamma, allowed)
        else:
            own, gradient = softmax_loop(z, y, alpha, gamma, form, allowed)
        total += own
        wanted = torch.tensor(gradient, dtype=torch.float64) / 12
        torch.testing.assert_close(logits.grad[row], wanted, rtol=1e-7, atol=1e-10)
    assert value.item() == pytest.approx(total / 12, rel=1e-9)


@pytest.mark.parametrize(
    ("p", "rho", "value"),
    [
        (0.01, 1.004315, 4.625040),
        (0.1, 1.045313, 2.406922),
        (0.5, 1.294051, 0.896968),
        (0.9, 1.778966, 0.187433),
        (0.99, 1.967871, 0.019778),
    ],
)
@pytest.mark.parametrize("norm", ["target", "l1_half"])
def test_checkpoints_of_the_specification(p, rho, value, norm):
    logits = torch.tensor([[math.log(p), math.log(1 - p)]], dtype=torch.float64, requires_grad=True)
    loss = LGRCrossEntropy(1, norm=norm)
    found = loss(logits, torch.tensor([0]))
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-6)
    assert logits.grad[0, 0].item() == pytest.approx(-rho * (1 - p), abs=1e-6)


@pytest.mark.parametrize(("form", "plain"), [("softmax", SoftmaxCrossEntropy), ("sigmoid", SigmoidCrossEntropy)])
def test_large_alpha_is_plain_cross_entropy(form, plain):
    loss, reference = LGRCrossEntropy(4, alpha=1e7, form=form), plain(4)
    logits, labels = inputs(20, loss.num_logits, 4)
    torch.testing.assert_close(loss(logits, labels), reference(logits, labels), rtol=1e-6, atol=1e-9)


def test_half_the_absolute_sum_is_the_target_norm():
    logits, labels = inputs(30, 6, 5)
    one, two = (LGRCrossEntropy(5, norm=norm).per_sample(logits, labels) for norm in ("target", "l1_half"))
    torch.testing.assert_close(one, two)


def test_a_certain_row_has_the_limit_for_its_weight():
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    value = LGRCrossEntropy(2)(logits, torch.tensor([0]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    near = torch.tensor([[20.0, 0.0]], dtype=torch.float64)
    ratio = LGRCrossEntropy(1)(near, torch.tensor([0])) / SoftmaxCrossEntropy(1)(near, torch.tensor([0]))
    assert ratio.item() == pytest.approx(0.8 * 2.49034, rel=1e-5)


def test_outputs_and_priors():
    assert (LGRCrossEntropy(5).num_logits, LGRCrossEntropy(5).bias_prior) == (6, None)
    loss = LGRCrossEntropy(5, form="sigmoid", prior=0.001)
    assert loss.num_logits == 5
    assert loss.bias_prior == pytest.approx(-math.log(999))
    assert LGRCrossEntropy(5, form="sigmoid", background_logit=True).num_logits == 6


@pytest.mark.parametrize(
    ("options", "match"),
    [({"alpha": 0}, "alpha"), ({"form": "tanh"}, "form"), ({"norm": "max"}, "norm"), ({"prior": 1}, "prior")],
)
def test_nonsense_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        LGRCrossEntropy(3, **options)
