"""What every exported classification loss must do (seam 6)."""

import copy
import inspect
import pickle

import pytest
import torch
from contract_parts import LOSSES, build, copies, logits_and_labels, same

every_loss = pytest.mark.parametrize("case", LOSSES)

# Losses that weigh rows by functions of *detached* logits: finite differences see a gradient that they leave out on
# purpose, so each has a gradient oracle in its own test file instead.
DETACHED_WEIGHTS = frozenset({"GHMClassification", "LGRCrossEntropy", "SeesawLoss"})

# Losses that weigh a row by how many others are like it: a row that is left out changes the others.
CROWD_WEIGHTS = frozenset({"GHMClassification"})


def frozen(loss, logits, labels, **options):
    """The loss without any change of state."""
    return loss(logits, labels, update_state=False, **options)


def test_every_public_loss_is_in_the_suite():
    names = {case.values[0][0].__name__ for case in LOSSES}
    assert {"SoftmaxCrossEntropy", "ObjectnessSoftmax", "SigmoidCrossEntropy", "FocalLoss"} <= names


@every_loss
def test_states_what_it_needs(case):
    loss = build(case)
    assert loss.heads
    assert loss.heads <= {"roi", "dense", "query"}
    assert loss.classifiers
    assert loss.classifiers <= {"linear", "cosine", "normed_linear", "lws", "deconfounded"}
    assert loss.num_logits >= loss.num_classes == 5
    assert loss.bias_prior is None or isinstance(loss.bias_prior, float)
    assert not list(loss.parameters())


@every_loss
def test_documents_its_shapes(case):
    text = inspect.cleandoc(case[0].__doc__)
    assert "Shapes:" in text
    assert "(N, C" in text


@every_loss
@pytest.mark.parametrize("num_classes", [0, -1])
def test_refuses_to_have_no_class(case, num_classes):
    if "num_classes" in inspect.signature(case[0]).parameters:
        with pytest.raises(ValueError, match="num_classes"):
            build(case, num_classes)


@every_loss
@pytest.mark.parametrize("update_state", [False, True])
def test_empty_input_gives_zero_with_a_gradient(case, update_state):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 0)
    value = loss(logits, labels, update_state=update_state)
    value.backward()
    assert value.item() == 0
    assert logits.grad.shape == (0, loss.num_logits)
    assert loss.scores(logits).shape == (0, loss.num_classes + 1)
    assert loss.per_sample(logits, labels).shape == (0,)


@every_loss
@pytest.mark.parametrize("update_state", [False, True])
def test_all_background(case, update_state):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 6)
    value = loss(logits, torch.full_like(labels, loss.num_classes), update_state=update_state)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@every_loss
def test_all_foreground(case):
    loss = build(case)
    logits, _ = logits_and_labels(loss, 5)
    value = frozen(loss, logits, torch.arange(5))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@every_loss
def test_one_class(case):
    loss = build(case, num_classes=1)
    logits, labels = logits_and_labels(loss, 6)
    value = loss(logits, labels, update_state=True)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert loss.scores(logits).shape == (6, 2)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits(case, dtype):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 40)
    extreme = (logits.detach().sign() * 1e4).to(dtype)
    extreme[:10] = 1e4
    extreme[10:20] = -1e4
    extreme.requires_grad_()
    value = frozen(loss, extreme, labels)
    value.backward()
    assert value.isfinite()
    assert extreme.grad.isfinite().all()
    scores = loss.scores(extreme)
    assert ((scores >= 0) & (scores <= 1)).all()


@every_loss
def test_bfloat16_is_computed_in_float32(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 20, dtype=torch.bfloat16)
    value = frozen(loss, logits, labels)
    value.backward()
    exact = frozen(loss, logits.detach().float(), labels)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(loss.scores(logits), loss.scores(logits.float()), rtol=1e-6, atol=1e-6)


@every_loss
def test_gradient_agrees_with_finite_differences(case):
    if case[0].__name__ in DETACHED_WEIGHTS or case[1].get("lgr"):
        pytest.skip("its weights are detached on purpose; see the gradient oracle in its own test file")
    loss = build(case)
    logits, labels = logits_and_labels(loss, 6, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.autograd.gradcheck(lambda z: frozen(loss, z, labels), (logits,))
    assert torch.autograd.gradcheck(lambda z: frozen(loss, z, labels, weight=weight, class_mask=mask), (logits,))


@every_loss
def test_float64_stays_float64(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 6, dtype=torch.float64)
    assert frozen(loss, logits, labels).dtype == torch.float64


@every_loss
@pytest.mark.parametrize("junk", [float("inf"), float("nan")])
def test_ignored_rows_count_for_nothing(case, junk):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 6)
    weight = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0, 1.0])
    kept = weight > 0
    spoilt = logits.detach().clone()
    spoilt[~kept] = junk
    spoilt.requires_grad_()
    value = frozen(loss, spoilt, labels, weight=weight)
    value.backward()
    alone = logits.detach()[kept].requires_grad_()
    expected = frozen(loss, alone, labels[kept], weight=weight[kept])
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(spoilt.grad[kept], alone.grad)


@every_loss
def test_all_rows_ignored(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 6)
    value = frozen(loss, logits, labels, weight=torch.zeros(6))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


@every_loss
def test_rows_are_weighed(case):
    if case[0].__name__ in CROWD_WEIGHTS:
        pytest.skip("its rows depend on which others count; see its own test file")
    loss = build(case)
    logits, labels = logits_and_labels(loss, 6)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 3.0])
    expected = (loss.per_sample(logits, labels) * weight).sum() / loss.normaliser(labels, weight)
    torch.testing.assert_close(frozen(loss, logits, labels, weight=weight), expected)
    torch.testing.assert_close(
        frozen(loss, logits, labels, weight=weight, normaliser=2.0), expected * loss.normaliser(labels, weight) / 2
    )


@every_loss
def test_counts_of_two_batches_add_up(case):
    """So that they can be summed over processes."""
    loss = build(case)
    _, labels = logits_and_labels(loss, 12)
    for count in (loss.normaliser_count, loss.dense_normaliser_count):
        for weight in (None, torch.tensor([1.0, 0.0, 0.5, 2.0] * 3)):
            for cut in (0, 1, 5):
                parts = [
                    count(labels[rows], None if weight is None else weight[rows])
                    for rows in (slice(cut), slice(cut, None))
                ]
                assert float(parts[0]) + float(parts[1]) == float(count(labels, weight))


@every_loss
def test_a_dense_head_divides_by_the_foreground(case):
    """Except losses whose cells weigh relative to their number."""
    loss = build(case)
    labels = torch.tensor([0, 5, 5, 2, 5, 1])
    weight = torch.tensor([1.0, 1.0, 0.0, 0.5, 2.0, 0.0])
    found = [float(loss.dense_normaliser_count(labels, given)) for given in (None, weight)]
    assert found == ([30.0, 20.0] if case[0].__name__ in CROWD_WEIGHTS else [3.0, 2.0])


@every_loss
def test_forward_is_the_normalised_sum_of_per_sample(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 11)
    rows = loss.per_sample(logits, labels)
    assert rows.shape == (11,)
    assert (rows >= 0).all()
    torch.testing.assert_close(frozen(loss, logits, labels), rows.sum() / loss.normaliser(labels, None))
    assert float(loss.normaliser(labels, None)) == float(loss.normaliser(labels, torch.ones(11)))


@every_loss
def test_order_of_rows_does_not_matter(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 11, dtype=torch.float64)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(frozen(loss, logits[order], labels[order]), frozen(loss, logits, labels))


@every_loss
def test_masked_classes_take_no_part(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 12)
    mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    frozen(loss, logits, labels, class_mask=mask).backward()
    is_label = labels.unsqueeze(1) == torch.arange(5)
    assert (logits.grad[:, :5][~mask & ~is_label] == 0).all()
    plain = frozen(loss, logits, labels)
    torch.testing.assert_close(frozen(loss, logits, labels, class_mask=torch.ones(12, 5, dtype=torch.bool)), plain)
    nothing = frozen(loss, logits, labels, class_mask=torch.zeros(12, 5, dtype=torch.bool))
    assert nothing.isfinite()
    assert nothing >= 0


@every_loss
def test_the_label_is_never_masked(case):
    loss = build(case)
    logits, _ = logits_and_labels(loss, 5)
    labels = torch.arange(5)
    only_others = ~torch.eye(5, dtype=torch.bool)
    everything = torch.ones(5, 5, dtype=torch.bool)
    torch.testing.assert_close(
        frozen(loss, logits, labels, class_mask=only_others), frozen(loss, logits, labels, class_mask=everything)
    )


@every_loss
def test_scores(case):
    loss = build(case)
    logits, _ = logits_and_labels(loss, 30)
    scores = loss.scores(logits)
    assert scores.shape == (30, 6)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert same(copies(loss), copies(build(case)))  # scoring is not learning


@every_loss
def test_a_higher_logit_scores_higher(case):
    loss = build(case)
    logits = torch.zeros(5, loss.num_logits)
    logits[torch.arange(5), torch.arange(5)] = 3.0
    assert torch.equal(loss.scores(logits)[:, :5].argmax(dim=1), torch.arange(5))


@every_loss
def test_state_changes_only_when_told(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 12)
    before = copies(loss)
    loss.train()
    loss(logits, labels, update_state=False)
    loss.per_sample(logits, labels)
    assert same(before, copies(loss))
    loss.eval()
    loss(logits, labels)
    assert same(before, copies(loss))


@every_loss
def test_update_state_follows_training_mode(case):
    first, second = build(case).train(), build(case).eval()
    logits, labels = logits_and_labels(first, 12)
    first(logits, labels)
    second(logits, labels, update_state=True)
    assert same(copies(first), copies(second))


@every_loss
def test_state_survives_saving(case):
    loss = build(case)
    for seed in range(3):
        loss(*logits_and_labels(loss, 12, seed), update_state=True)
    again = build(case)
    again.load_state_dict(loss.state_dict())
    logits, labels = logits_and_labels(loss, 12, seed=9)
    assert torch.equal(frozen(again, logits, labels), frozen(loss, logits, labels))
    again(logits, labels, update_state=True)
    loss(logits, labels, update_state=True)
    assert same(copies(again), copies(loss))


@every_loss
def test_everything_it_keeps_is_a_buffer(case):
    loss = build(case)
    loss(*logits_and_labels(loss, 12), update_state=True)
    for module in loss.modules():
        loose = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not loose, f"kept outside the state dict: {loose}"
    assert not any(buffer.requires_grad for buffer in loss.buffers())


@every_loss
def test_is_deterministic(case):
    results = []
    for _ in range(2):
        loss = build(case)
        generator = torch.Generator().manual_seed(4)
        logits, labels = logits_and_labels(loss, 40)
        value = loss(logits, labels, update_state=True, generator=generator)
        value.backward()
        results.append((value, logits.grad, copies(loss)))
    (value, grad, state), (again, grad_again, state_again) = results
    assert torch.equal(value, again)
    assert torch.equal(grad, grad_again)
    assert same(state, state_again)


@every_loss
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_can_be_copied_and_pickled(case, duplicate):
    loss = build(case)
    loss(*logits_and_labels(loss, 12), update_state=True)
    twin = duplicate(loss)
    kept = copies(loss)
    logits, labels = logits_and_labels(loss, 12, seed=9)
    assert torch.equal(frozen(twin, logits, labels), frozen(loss, logits, labels))
    assert (twin.num_logits, twin.bias_prior, twin.heads) == (loss.num_logits, loss.bias_prior, loss.heads)
    twin(logits, labels, update_state=True)
    assert same(copies(loss), kept)


@every_loss
def test_leaves_its_inputs_alone(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 12)
    kept, kept_labels = logits.detach().clone(), labels.clone()
    mask = torch.zeros(12, 5, dtype=torch.bool)
    loss(logits, labels, class_mask=mask, update_state=True)
    loss.scores(logits)
    assert torch.equal(logits, kept)
    assert torch.equal(labels, kept_labels)
    assert not mask.any()


@every_loss
def test_never_waits_for_the_device(case):
    """Tensors without data: whatever would read a value on the host fails."""
    loss = build(case).to("meta")
    logits = torch.empty(12, loss.num_logits, device="meta", requires_grad=True)
    labels = torch.empty(12, dtype=torch.long, device="meta")
    mask = torch.empty(12, 5, dtype=torch.bool, device="meta")
    value = loss(logits, labels, weight=torch.empty(12, device="meta"), class_mask=mask, update_state=True)
    value.backward()
    assert value.shape == ()
    assert logits.grad.shape == logits.shape
    assert loss.scores(logits).shape == (12, 6)


@every_loss
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_on_the_gpu_without_waiting(case):
    loss = build(case)
    logits, labels = logits_and_labels(loss, 40)
    expected = frozen(loss, logits, labels, weight=torch.ones(40))
    on_gpu, gpu_logits, gpu_labels = build(case).cuda(), logits.detach().cuda().requires_grad_(), labels.cuda()
    weight = torch.ones(40, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = frozen(on_gpu, gpu_logits, gpu_labels, weight=weight)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.cpu(), expected)
