"""Recipes: merging, scales, overrides, errors."""

from pathlib import Path

import pytest

from longtail.schema import UsageError, change_recipe, dump_recipe, load, load_recipe, recipe_names, scale_names
from longtail.schema.load import merge


@pytest.mark.parametrize("scale", scale_names())
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_at_every_scale_and_reloads_equal(name: str, scale: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, [f"scale={scale}"])
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert load_recipe(file) == recipe
    assert recipe.scale == scale
    assert recipe.summary
    assert recipe.paper


def test_issue_names_are_shipped() -> None:
    assert {"baseline", "baseline-cosine", "rfs", "rfs-cosine", "class-aware"} <= set(recipe_names())
    assert {"tiny", "small", "lvis_v0.5", "lvis_v1"} <= set(scale_names())


def test_the_recipe_wins_over_the_scale_and_the_override_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nextends: rfs\nmodel: {neck: {channels: 48}}\n")
    assert load_recipe(file, ["scale=tiny"]).model.neck.channels == 48
    assert load_recipe("rfs", ["scale=tiny"]).model.neck.channels == 64
    assert load_recipe(file, ["scale=tiny", "model.neck.channels=32"]).model.neck.channels == 32


def test_scale_sets_thresholds_and_the_loss_only_where_the_recipe_names_none() -> None:
    tiny = load_recipe("rfs", ["scale=tiny"]).stages[0]
    assert tiny.sampler.type == "repeat_factor"
    assert tiny.sampler.threshold == 0.08
    assert tiny.classification_loss.type == "objectness_softmax"
    assert tiny.classification_loss.loss_weight == 2.5
    named = load_recipe("rfs", ["scale=tiny", "stages.end-to-end.classification_loss=softmax"]).stages[0]
    assert named.classification_loss.type == "softmax"
    assert named.classification_loss.loss_weight == 1.0
    assert load_recipe("rfs", ["scale=lvis_v1"]).stages[0].classification_loss.type == "softmax"


@pytest.mark.parametrize(
    ("scale", "threshold"), [("coco", 0.05), ("coco-2x", 0.05), ("voc", 0.05), ("lvis_v1-1x", 0.001)]
)
def test_low_scores_are_cut_where_published_but_not_those_of_queries(scale: str, threshold: float) -> None:
    for model in ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet"):
        assert (
            load_recipe("baseline", [f"scale={scale}", f"model={model}"]).model.inference.score_threshold == threshold
        )
    queries = load_recipe("deformable-detr", [f"scale={scale}"]).model.inference
    assert queries.score_threshold == 0.0
    assert queries.detections_per_image == (300 if scale.startswith("lvis") else 100)


def test_detector_is_one_override_and_keeps_the_rest() -> None:
    assert load_recipe("baseline", ["scale=tiny"]).model.type == "faster_rcnn"
    assert load_recipe("baseline", ["scale=lvis_v1"]).model.type == "mask_rcnn"
    recipe = load_recipe("baseline", ["scale=tiny", "model=mask_rcnn"])
    assert recipe.model.type == "mask_rcnn"
    assert recipe.model.neck.channels == 64


def test_overrides_of_a_bare_name_and_of_scientific_notation() -> None:
    recipe = load_recipe("rfs", ["scale=tiny", "model.backbone=resnet101", "stages.*.sampler.threshold=1e-3"])
    assert recipe.model.backbone.name == "resnet101"
    assert recipe.stages[0].sampler.threshold == 0.001


def test_a_schedule_given_in_epochs_replaces_one_given_in_images() -> None:
    schedule = load_recipe("rfs", ["scale=tiny", "stages.end-to-end.schedule.epochs=3"]).stages[0].schedule
    assert (schedule.epochs, schedule.images) == (3, None)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("stages.end-to-end.samplr=uniform", "'sampler'"),
        ("model.backbne=lite0", "'backbone'"),
        ("stages.end-to-end.sampler.treshold=1", "'threshold'"),
        ("stages.end-to-end.classification_loss=softmx", "'softmax'"),
        ("stages.end-to-edn.box_weight=1", "'end-to-end'"),
        ("scale=tinny", "'tiny'"),
        ("model.backbone=resnet99", "'resnet'"),
    ],
)
def test_a_mistake_is_a_usage_error_that_names_the_nearest(override: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=suggestion):
        load_recipe("rfs", ["scale=tiny", override] if not override.startswith("scale") else [override])


@pytest.mark.parametrize(
    "override",
    [
        "stages.end-to-end.sampler.exponent=-1",
        "stages.end-to-end.schedule.batch_size=0",
        "stages.end-to-end.schedule.accumulate=3",
        "stages.end-to-end.schedule.milestones=[0.9, 0.5]",
        "seed=-1",
        "nonsense",
    ],
)
def test_values_out_of_bounds_are_usage_errors(override: str) -> None:
    with pytest.raises(UsageError):
        load_recipe("rfs", ["scale=tiny", override])


def test_unknown_recipe_suggests_and_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'rfs'"):
        load_recipe("rsf")
    with pytest.raises(UsageError, match="no recipe file"):
        load_recipe(tmp_path / "absent.yaml")


def test_extends_goes_three_deep_and_no_deeper(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nstages: [{name: one}]\n")
    for child, parent in (("b", "a"), ("c", "b"), ("d", "c"), ("e", "d")):
        (tmp_path / f"{child}.yaml").write_text(f"name: {child}\nextends: {parent}\n")
    assert load_recipe(tmp_path / "d.yaml").stages[0].name == "one"
    with pytest.raises(UsageError, match="deeper"):
        load_recipe(tmp_path / "e.yaml")


def test_stages_merge_by_name_and_new_ones_follow() -> None:
    weak = {"stages": [{"name": "one", "a": 1, "sampler": {"type": "uniform"}}]}
    strong = {"stages": [{"name": "two"}, {"name": "one", "sampler": {"type": "repeat_factor", "threshold": 1}}]}
    merged = merge(weak, strong)["stages"]
    assert merged == [{"name": "one", "a": 1, "sampler": {"type": "repeat_factor", "threshold": 1}}, {"name": "two"}]
    assert weak["stages"][0]["sampler"] == {"type": "uniform"}, "the weaker tree is left alone"


def test_recipes_are_frozen() -> None:
    recipe = load_recipe("baseline", ["scale=tiny"])
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_bare_name_can_be_refined_afterwards() -> None:
    recipe = load_recipe(
        "rfs",
        ["scale=tiny", "model.backbone=resnet18", "model.backbone.norm=group", "stages.*.sampler=repeat_factor",
         "stages.*.sampler.exponent=1"],
    )  # fmt: skip
    assert (recipe.model.backbone.name, recipe.model.backbone.norm) == ("resnet18", "group")
    assert recipe.stages[0].sampler.exponent == 1
    assert recipe.stages[0].sampler.threshold == 0.08, "the scale's default survives"
    assert load_recipe("baseline", ["model.backbone=timm/convnext_tiny"]).model.backbone.type == "timm"


def test_a_resolved_recipe_changes_only_where_it_may() -> None:
    recipe = load_recipe("baseline", ["scale=tiny"])
    changed = change_recipe(recipe, ["model.inference.adjust={type: adjust_logits, tau: 2}"], below="model.inference")
    assert changed.model.inference.adjust is not None
    assert changed.model.inference.adjust.tau == 2
    assert recipe.model.inference.adjust is None
    assert change_recipe(recipe, ["model.inference.adjust=tau_normalise"], below="model.inference") != recipe
    assert change_recipe(recipe, [], below="model.inference") == recipe
    for text, said in {"seed=3": "below model.inference", "model.inference.adjst=1": "adjust"}.items():
        with pytest.raises(UsageError, match=said):
            change_recipe(recipe, [text], below="model.inference")


def test_scales_know_the_lengths_of_stages_by_name(tmp_path: Path) -> None:
    tiny, large = (load_recipe("crt", [f"scale={scale}"]).stages[1] for scale in ("tiny", "lvis_v1"))
    assert (tiny.schedule.images, large.schedule.epochs, large.optimiser.lr) == (960, 12, 0.01)
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nextends: crt\nstages: [{name: classifier, schedule: {images: 400}}]\n")
    assert load_recipe(file, ["scale=lvis_v1"]).stages[1].schedule.images == 400
    assert load_recipe(file, ["scale=lvis_v1"]).stages[1].schedule.epochs is None


def test_a_scale_says_nothing_of_parts_the_model_has_not(monkeypatch) -> None:
    monkeypatch.setattr("longtail.schema.load.model_keys", lambda kind: frozenset({"type", "backbone", "neck"}))
    tree = {"type": "mask_rcnn", "backbone": 1, "proposals": 2, "masks": 3}
    assert load._without_foreign_keys(tree, {"masks": set()}) == {"type": "mask_rcnn", "backbone": 1, "masks": 3}
    changes = [(["model", "regions", "channels"], 8), (["model"], {"masks": {}}), (["seed"], 1)]
    assert load._asked_of_model({"model": "mask_rcnn"}, changes) == {"regions": {"channels"}, "masks": set()}
    assert load._asked_of_model({"model": {"neck": {}}}, []) == {"neck": set()}


def test_a_name_in_a_list_gets_the_defaults_of_the_scale() -> None:
    bare = load_recipe("rfs", ["scale=tiny", "stages.*.replay=[virtual_features, object_memory]"]).stages[0]
    assert [part.type for part in bare.replay] == ["virtual_features", "object_memory"]
    written_out = "stages.*.replay=[{type: virtual_features}, {type: object_memory}]"
    assert bare == load_recipe("rfs", ["scale=tiny", written_out]).stages[0]


@pytest.mark.parametrize("scale", sorted({*scale_names()} - {"cifar_lt"}))
def test_another_sampler_of_anchors_takes_as_many_as_the_scale_says(scale: str) -> None:
    models = [load_recipe(name, [f"scale={scale}"]).model for name in ("rpn", "libra-rpn")]
    plain, libra = (model.proposals.region_sampler for model in models)
    assert (plain.type, libra.type) == ("random", "iou_balanced")
    assert (libra.count, libra.positive_fraction) == (plain.count, 0.5)


def test_a_sampler_of_regions_keeps_its_number_and_nothing_else() -> None:
    weak = {"region_sampler": {"type": "random", "count": 8, "positive_fraction": 0.5, "positives": "per_class"}}
    strong = {"region_sampler": {"type": "hard_examples", "positive_fraction": 0.1}}
    assert load.merge(weak, strong)["region_sampler"] == {
        "type": "hard_examples", "count": 8, "positive_fraction": 0.1
    }  # fmt: skip
    weak, strong = {"classifier": {"type": "cosine", "scale": 1}}, {"classifier": {"type": "linear"}}
    assert load.merge(weak, strong) == strong


def test_intervals_are_in_one_unit() -> None:
    given = "stages.*.passes_every={images: 64}"
    assert load_recipe("rfs", ["scale=lvis_v1", given]).stages[0].passes_every.epochs is None
    by_epoch = load_recipe("rfs", ["scale=tiny", "stages.*.passes_every.epochs=2"]).stages[0].passes_every
    assert (by_epoch.epochs, by_epoch.images) == (2, None)
    with pytest.raises(UsageError, match="exactly one of `epochs` and `images`"):
        load_recipe("rfs", ["scale=lvis_v1", "stages.*.passes_every={images: 64, epochs: 1}"])


def test_a_part_without_a_type_is_of_its_default_type():
    recipe = load_recipe("baseline", ["scale=coco", "model.neck.balance=bfp", "stages.*.box_loss.beta=0.5"])
    neck, box_loss = recipe.model.model_dump()["neck"], recipe.stages[0].box_loss.model_dump()
    assert (neck["type"], neck["balance"]["type"]) == ("fpn", "bfp")
    assert (box_loss["type"], box_loss["beta"]) == ("smooth_l1", 0.5)
    with pytest.raises(UsageError, match="beta2"):
        load_recipe("baseline", ["scale=coco", "stages.*.box_loss.beta2=0.5"])
