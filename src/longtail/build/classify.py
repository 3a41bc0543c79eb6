"""From the schema's model and stage to a classifier of pictures."""

from __future__ import annotations

from longtail.build.detector import classifier, stage_classifier
from longtail.build.features import pyramid_backbone
from longtail.build.losses import classification_loss
from longtail.build.replay import check_stages, mean_score, replay_parts
from longtail.data import ClassStatistics
from longtail.models.cifar import CifarResNet, small_resnet34
from longtail.models.image_classifier import ImageClassifier, PictureHead
from longtail.models.picture_backbones import PictureBackbone, pooled
from longtail.schema import StageSpec, UsageError, features
from longtail.schema import image_classifier as specs


def build_classifier(
    model: specs.ImageClassifier,
    stage: StageSpec,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> ImageClassifier:
    """A classifier of pictures; arguments and errors as for :func:`~longtail.build.model.build_model`."""
    backbone = picture_backbone(model.backbone, pretrained=pretrained, trust=trust)
    if mean_score(stage, statistics) is not None:
        raise UsageError(
            f"stage {stage.name!r} follows the mean scores of objects' regions, and pictures have none; use "
            "classification_loss={type: equilibrium, guide: instances}, and no mean_score or feature_memory"
        )
    check_stages(stage, 1)
    loss = classification_loss(stage.classification_loss, statistics)
    head = PictureHead(
        num_classes=statistics.num_classes,
        feature_size=backbone.out_features,
        classification_loss=loss,
        classifier=classifier(stage_classifier(model, stage, loss)),
        replay=replay_parts(stage.replay, statistics, feature_size=backbone.out_features, schedule=stage.schedule),
    )
    return ImageClassifier(
        backbone.network,
        head,
        size=model.size,
        mean=backbone.mean,
        std=backbone.std,
        classification_weight=stage.classification_loss.loss_weight,
        channels_last=model.channels_last,
    )


def picture_backbone(
    spec: specs.CifarNetwork | features.ResNet | features.Timm, *, pretrained: bool, trust: bool
) -> PictureBackbone:
    """The network below the classifier."""
    match spec:
        case specs.CifarNetwork(name="cifar_resnet34"):
            return PictureBackbone(small_resnet34(), 512)
        case specs.CifarNetwork():
            network = CifarResNet(int(spec.name.removeprefix("cifar_resnet")))
            return PictureBackbone(network, network.out_features)
        case features.ResNet() | features.Timm():
            return pooled(pyramid_backbone(spec, features.FPN(), pretrained=pretrained, trust=trust))
