"""Parts of detectors, and the two-stage detectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.classifiers import ClassifierSpec, Linear
from longtail.schema.features import FPN, BackboneSpec, NeckSpec, ResNet
from longtail.schema.losses import BoxLossSpec, SmoothL1
from longtail.schema.parts import Part, named
from longtail.schema.samplers import Random, RegionSamplerSpec


class MatcherSpec(Part):
    """Which candidate belongs to which object."""

    high: float = Field(0.5, ge=0, le=1, description="IoU from which a candidate is positive.")
    low: float = Field(0.5, ge=0, le=1, description="IoU below which a candidate is negative.")
    low_quality: bool = Field(False, description="Whether the best candidate of every object is positive regardless.")
    min_low_quality: float = Field(0.0, ge=0, le=1, description="Least IoU of such a match.")
    centre_in_gt: Literal["off", "negative", "ignore"] = Field(
        "off", description="What becomes of a positive whose centre lies outside its object."
    )


class ResamplingNMS(Part):
    """Milder suppression in training for proposals that lie on rarer classes (Forest R-CNN)."""

    type: Literal["resampling_nms"] = "resampling_nms"
    rare: float = Field(0.9, ge=0, le=1, description="NMS threshold on objects of rare classes.")
    common: float = Field(0.8, ge=0, le=1, description="The same for common classes.")
    frequent: float = Field(0.7, ge=0, le=1, description="The same for frequent classes.")
    match_iou: float = Field(0.3, ge=0, le=1, description="IoU from which a proposal lies on an object.")


class Proposals(Part):
    """The region proposal network."""

    anchor_sizes: tuple[float, ...] = Field((32, 64, 128, 256, 512), description="Anchor side per level, in pixels.")
    aspect_ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), description="Height over width of the anchors.")
    matcher: MatcherSpec = MatcherSpec(high=0.7, low=0.3, low_quality=True)
    region_sampler: RegionSamplerSpec = Random(count=256, positive_fraction=0.5)
    box_loss: BoxLossSpec = SmoothL1()
    nms_threshold: float = Field(0.7, ge=0, le=1, description="IoU above which the weaker proposal goes.")
    filter: ResamplingNMS | None = Field(
        None, description="Replaces the NMS in training; proposals on the background keep `nms_threshold`."
    )
    before_nms: tuple[int, int] = Field((2000, 1000), description="Proposals per level before NMS: training, test.")
    after_nms: tuple[int, int] = Field((1000, 1000), description="Proposals per image kept: training, test.")
    cache: str | None = Field(
        None, description="Folder of `longtail proposals`, for stages on cached proposals; none = the run's own."
    )


class MLPHead(Part):
    """Two fully connected layers."""

    type: Literal["mlp"] = "mlp"


class ConvHead(Part):
    """Convolutions with group norms, then one fully connected layer ("4conv-fc")."""

    type: Literal["conv"] = "conv"
    layers: int = Field(4, ge=1, description="Number of 3x3 convolutions.")
    channels: int = Field(256, ge=1, description="Their channels.")


HeadSpec = Annotated[MLPHead | ConvHead, Field(discriminator="type"), BeforeValidator(named)]


class RegionsPart(Part):
    """What every region head has."""

    head: HeadSpec = MLPHead()
    pool_size: int = Field(7, ge=1, description="Side of the pooled features.")
    sampling_ratio: int = Field(2, ge=0, description="Points per bin and axis; 0 = as many as there are pixels.")
    canonical_scale: float = Field(224, gt=0, description="Side in pixels of a region that is pooled from level 4.")
    channels: int = Field(1024, ge=1, description="Width of the fully connected layers.")


class Regions(RegionsPart):
    """The region head."""

    matcher: MatcherSpec = MatcherSpec()
    class_agnostic: bool = Field(False, description="One box regressor for all classes instead of one per class.")


class CascadeStage(Part):
    """One stage of a cascade."""

    iou: float = Field(ge=0, le=1, description="IoU from which a candidate is positive; below it is negative.")
    loss_weight: float = Field(ge=0, description="Factor on all losses of the stage.")
    box_weights: tuple[float, float, float, float] = Field(description="Factors of the encoded dx, dy, dw, dh.")


class CascadeRegions(RegionsPart):
    """The region heads of a cascade."""

    stages: tuple[CascadeStage, ...] = Field(
        (
            CascadeStage(iou=0.5, loss_weight=1.0, box_weights=(10.0, 10.0, 5.0, 5.0)),
            CascadeStage(iou=0.6, loss_weight=0.5, box_weights=(20.0, 20.0, 10.0, 10.0)),
            CascadeStage(iou=0.7, loss_weight=0.25, box_weights=(30.0, 30.0, 15.0, 15.0)),
        ),
        min_length=1,
        description="Each stage learns from the boxes that the one before has moved.",
    )
    centre_in_gt: Literal["off", "negative", "ignore"] = Field(
        "off", description="What becomes of a positive whose centre lies outside its object."
    )
    class_agnostic: Literal[True] = Field(True, description="A cascade has one box regressor for all classes.")


class Masks(Part):
    """The mask branch (only `mask_rcnn` and `cascade_mask_rcnn` have one)."""

    pool_size: int = Field(14, ge=1, description="Side of the pooled features; masks are twice as large.")
    channels: tuple[int, ...] = Field((256, 256, 256, 256), description="Channels of the 3x3 convolutions.")
    class_agnostic: bool = Field(False, description="One mask for all classes instead of one per class.")
    predictor: Literal["ordinary", "normalised"] = Field("ordinary", description="`normalised`: LOCE and Seesaw.")


class TauNormalise(Part):
    """Class weights divided by their norm to the power of tau (Kang et al., 2020); the classifier must be linear."""

    type: Literal["tau_normalise"] = "tau_normalise"
    tau: float = Field(0.7, ge=0, description="0 changes nothing, 1 makes all norms equal.")
    keep_bias: bool = Field(True, description="Whether classes keep their bias.")
    keep_background: bool = Field(True, description="Whether the background keeps its score exactly.")


class AdjustLogits(Part):
    """The log prior of every class taken off its logit (Menon et al., 2021)."""

    type: Literal["adjust_logits"] = "adjust_logits"
    tau: float = Field(1.0, ge=0, description="Strength; 0 changes nothing.")
    keep_background: bool = Field(True, description="Whether the background keeps its score exactly.")


AdjustSpec = Annotated[TauNormalise | AdjustLogits, Field(discriminator="type"), BeforeValidator(named)]


class Inference(Part):
    """From logits to detections."""

    score_threshold: float = Field(1e-4, ge=0, le=1, description="Detections below this score are dropped.")
    nms_threshold: float = Field(0.5, ge=0, le=1, description="IoU of the per-class NMS.")
    detections_per_image: int = Field(300, ge=1, description="Detections kept per image, over all classes.")
    pre_nms_cap: int | None = Field(10_000, ge=1, description="Best candidates that enter the NMS; none = all.")
    adjust: AdjustSpec | None = Field(None, description="Changes class logits without training; none = as trained.")


class ModelPart(Part):
    """What every model has; each kind of model has a ``type`` besides."""

    classifier: ClassifierSpec = Linear()
    channels_last: bool = Field(False, description="Memory layout; faster for mobile backbones on a CPU.")

    @property
    def has_masks(self) -> bool:
        """Whether the model learns from masks and gives some."""
        return False

    def peculiarities(self) -> list[tuple[str, Part]]:
        """Parts of this model alone that are switched on, each with the word it is listed under."""
        return []


class DetectorPart(ModelPart):
    """What every detector has."""

    backbone: BackboneSpec = ResNet()
    neck: NeckSpec = FPN()
    inference: Inference = Inference()

    def peculiarities(self) -> list[tuple[str, Part]]:
        """What changes the scores."""
        return [] if self.inference.adjust is None else [("scores", self.inference.adjust)]


class TwoStagePart(DetectorPart):
    """What every detector has that looks at proposals."""

    proposals: Proposals = Proposals()
    regions: RegionsPart = RegionsPart()
    masks: Masks = Masks()

    def peculiarities(self) -> list[tuple[str, Part]]:
        """What takes the place of the proposals' NMS and of the linear layers, and what changes the scores."""
        own: list[tuple[str, Part]] = [] if self.proposals.filter is None else [("proposals", self.proposals.filter)]
        if not isinstance(self.regions.head, MLPHead):
            own.append(("head", self.regions.head))
        return own + super().peculiarities()


class RCNN(TwoStagePart):
    """Faster R-CNN or Mask R-CNN."""

    type: Literal["faster_rcnn", "mask_rcnn"] = "mask_rcnn"
    regions: Regions = Regions()

    @property
    def has_masks(self) -> bool:
        """Mask R-CNN alone has a mask branch."""
        return self.type == "mask_rcnn"


class CascadeRCNN(TwoStagePart):
    """Cascade R-CNN or Cascade Mask R-CNN."""

    type: Literal["cascade_rcnn", "cascade_mask_rcnn"] = "cascade_rcnn"
    regions: CascadeRegions = CascadeRegions()

    @property
    def has_masks(self) -> bool:
        """Cascade Mask R-CNN alone has mask branches."""
        return self.type == "cascade_mask_rcnn"


class QueryInference(Inference):
    """From the logits of queries to detections: the best pairs of query and class, published without suppression."""

    score_threshold: float = Field(0.0, ge=0, le=1, description="Detections below this score are dropped.")
    nms_threshold: float = Field(1.0, ge=0, le=1, description="IoU of the per-class NMS; 1 = none.")


class DeformableDETR(ModelPart):
    """Deformable DETR. It has no pyramid: the transformer mixes the backbone's maps itself."""

    type: Literal["deformable_detr"] = "deformable_detr"
    backbone: BackboneSpec = ResNet()
    finest_stride: int = Field(8, ge=1, description="Maps of the backbone with smaller strides are not used.")
    levels: int = Field(4, ge=2, description="Maps the transformer sees; convolutions make those the backbone lacks.")
    channels: int = Field(256, ge=64, multiple_of=32, description="Width of the transformer.")
    hidden: int = Field(1024, ge=1, description="Width of its feed-forward layers.")
    heads: int = Field(8, ge=1, description="Attention heads.")
    points: int = Field(4, ge=1, description="Sampling points per head and level.")
    encoder_layers: int = Field(6, ge=1, description="Layers of the encoder.")
    decoder_layers: int = Field(6, ge=1, description="Layers of the decoder.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout in the transformer.")
    start: Literal["xavier", "normal"] = Field(
        "xavier", description="Initial matrices: as in the released code, or N(0, 0.02) as in transformers."
    )
    num_queries: int = Field(300, ge=1, description="At most so many objects are found.")
    box_refine: bool = Field(True, description="Whether every layer moves the boxes of the one before it.")
    two_stage: bool = Field(True, description="Whether queries are the encoder's best places instead of learned.")
    repeats: int = Field(1, ge=1, description="Queries matched with each object; above 1 for short training with NMS.")
    l1_weight: float = Field(5.0, ge=0, description="Factor of the boxes' L1 loss, before the stage's `box_weight`.")
    giou_weight: float = Field(2.0, ge=0, description="Factor of the boxes' GIoU loss, likewise.")
    proposal_weight: float = Field(3.0, ge=0, description="Factor of the focal loss of the encoder's proposals.")
    inference: QueryInference = QueryInference()
