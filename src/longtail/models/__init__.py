"""Detectors and their parts: backbones, heads, classifiers, matching and what becomes a detection."""

from longtail.models.adjustment import adjust_logits, tau_normalise
from longtail.models.atss import ATSSMatcher
from longtail.models.backbones import PyramidBackbone, resnet_fpn, timm_fpn
from longtail.models.box_heads import conv_head
from longtail.models.calibrated import CalibratedHead
from longtail.models.cascade import PUBLISHED_STAGES, CascadeRCNN, CascadeStage, cascade_rcnn
from longtail.models.classifiers import Classifier, CosineClassifier, LinearClassifier, NormedLinear
from longtail.models.deconfounded import DeconfoundedClassifier
from longtail.models.deformable import DeformableConv2d, make_deformable
from longtail.models.deformable_detr import DeformableDETR, deformable_detr
from longtail.models.dense_head import DenseHead, DenseOutputs
from longtail.models.image_classifier import ImageClassifier
from longtail.models.learnable_weight_scaling import LearnableWeightScaling
from longtail.models.mask_head import MaskBranch
from longtail.models.mask_predictors import NormalisedMaskPredictor, OrdinaryMaskPredictor
from longtail.models.matching import Matcher
from longtail.models.necks import PAFPN, BalancedFeaturePyramid, EmbeddedGaussian
from longtail.models.postprocess import Inference, masks_to_rle, paste_masks
from longtail.models.preprocess import ImageBatcher
from longtail.models.proposals import LevelNMS, ProposalFilter, ProposalNetwork, Proposals, TopN
from longtail.models.proposer import CachedProposals, ProposalDetector, Proposer
from longtail.models.query_losses import QueryCriterion
from longtail.models.query_matching import MatchCost
from longtail.models.query_transformer import transformers_state
from longtail.models.rcnn import RCNN, faster_rcnn, mask_rcnn, proposal_network
from longtail.models.region_head import BoxStage, StageResult
from longtail.models.regions import Regions
from longtail.models.remap import remap_classes
from longtail.models.resampling_nms import ResamplingNMS
from longtail.models.retinanet import RetinaNet, retinanet
from longtail.models.tiny import tiny32
from longtail.models.torchvision_weights import from_torchvision, retinanet_from_torchvision

__all__ = [
    "PAFPN",
    "PUBLISHED_STAGES",
    "RCNN",
    "ATSSMatcher",
    "BalancedFeaturePyramid",
    "BoxStage",
    "CachedProposals",
    "CalibratedHead",
    "CascadeRCNN",
    "CascadeStage",
    "Classifier",
    "CosineClassifier",
    "DeconfoundedClassifier",
    "DeformableConv2d",
    "DeformableDETR",
    "DenseHead",
    "DenseOutputs",
    "EmbeddedGaussian",
    "ImageBatcher",
    "ImageClassifier",
    "Inference",
    "LearnableWeightScaling",
    "LevelNMS",
    "LinearClassifier",
    "MaskBranch",
    "MatchCost",
    "Matcher",
    "NormalisedMaskPredictor",
    "NormedLinear",
    "OrdinaryMaskPredictor",
    "ProposalDetector",
    "ProposalFilter",
    "ProposalNetwork",
    "Proposals",
    "Proposer",
    "PyramidBackbone",
    "QueryCriterion",
    "Regions",
    "ResamplingNMS",
    "RetinaNet",
    "StageResult",
    "TopN",
    "adjust_logits",
    "cascade_rcnn",
    "conv_head",
    "deformable_detr",
    "faster_rcnn",
    "from_torchvision",
    "make_deformable",
    "mask_rcnn",
    "masks_to_rle",
    "paste_masks",
    "proposal_network",
    "remap_classes",
    "resnet_fpn",
    "retinanet",
    "retinanet_from_torchvision",
    "tau_normalise",
    "timm_fpn",
    "tiny32",
    "transformers_state",
]
