"""Default values under upstream's keys. Keys that only upstream's models read are left out."""

from .config import CfgNode as CN

_C = CN()

# The version of the keys. A file with another version is refused.
_C.VERSION = 2

_C.MODEL = CN()
_C.MODEL.LOAD_PROPOSALS = False
_C.MODEL.MASK_ON = False
_C.MODEL.KEYPOINT_ON = False
_C.MODEL.DEVICE = "cuda"
_C.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
# Path or URL of a checkpoint, for evaluation and for the start of training. Empty: random initialisation.
_C.MODEL.WEIGHTS = ""
# Per channel of INPUT.FORMAT, in units of 0..255.
_C.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
_C.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]

_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = "build_resnet_backbone"
# The number of frozen stages of the backbone: 0 none, 1 the stem, 2 the stem and the first stage, ...
_C.MODEL.BACKBONE.FREEZE_AT = 2

_C.INPUT = CN()
# Lengths of an image's shorter side. For each image one of them is drawn, or with "range" a length between the two.
_C.INPUT.MIN_SIZE_TRAIN = (800,)
_C.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
# Upper limit of the longer side.
_C.INPUT.MAX_SIZE_TRAIN = 1333
# 0: no resizing in evaluation.
_C.INPUT.MIN_SIZE_TEST = 800
_C.INPUT.MAX_SIZE_TEST = 1333
# One of "horizontal", "vertical" and "none".
_C.INPUT.RANDOM_FLIP = "horizontal"

_C.INPUT.CROP = CN({"ENABLED": False})
# The meaning of SIZE, (height, width): "relative", "relative_range", "absolute" or "absolute_range".
_C.INPUT.CROP.TYPE = "relative_range"
_C.INPUT.CROP.SIZE = [0.9, 0.9]

# Channel order of the model's input: a Pillow mode, "BGR" or "YUV-BT.601".
_C.INPUT.FORMAT = "BGR"
# The type of ground-truth masks: "polygon" or "bitmask".
_C.INPUT.MASK_FORMAT = "polygon"

_C.DATASETS = CN()
# Names in the DatasetCatalog.
_C.DATASETS.TRAIN = ()
_C.DATASETS.TEST = ()
_C.DATASETS.PROPOSAL_FILES_TRAIN = ()
_C.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
_C.DATASETS.PROPOSAL_FILES_TEST = ()
_C.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000

_C.DATALOADER = CN()
# Worker processes of each rank; 0 loads in the training process.
_C.DATALOADER.NUM_WORKERS = 4
# A batch has either wide or tall images, which needs less padding.
_C.DATALOADER.ASPECT_RATIO_GROUPING = True
# "TrainingSampler", "RepeatFactorTrainingSampler" or "RandomSubsetTrainingSampler".
_C.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
# RepeatFactorTrainingSampler repeats images of categories that occur in a smaller share of images than this.
_C.DATALOADER.REPEAT_THRESHOLD = 0.0
_C.DATALOADER.REPEAT_SQRT = True
_C.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True

_C.SOLVER = CN()
_C.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
_C.SOLVER.MAX_ITER = 40000
_C.SOLVER.BASE_LR = 0.001
# The final rate of WarmupCosineLR.
_C.SOLVER.BASE_LR_END = 0.0
_C.SOLVER.MOMENTUM = 0.9
_C.SOLVER.NESTEROV = False
_C.SOLVER.WEIGHT_DECAY = 0.0001
# For the parameters of normalisation layers.
_C.SOLVER.WEIGHT_DECAY_NORM = 0.0
# WarmupMultiStepLR multiplies the rate by GAMMA at each of STEPS.
_C.SOLVER.GAMMA = 0.1
_C.SOLVER.STEPS = (30000,)
# WarmupStepWithFixedGammaLR multiplies it NUM_DECAYS times, at equal distances.
_C.SOLVER.NUM_DECAYS = 3
_C.SOLVER.WARMUP_FACTOR = 1.0 / 1000
_C.SOLVER.WARMUP_ITERS = 1000
_C.SOLVER.WARMUP_METHOD = "linear"
_C.SOLVER.RESCALE_INTERVAL = False
# Iterations between checkpoints.
_C.SOLVER.CHECKPOINT_PERIOD = 5000
# Images of one step, over all ranks.
_C.SOLVER.IMS_PER_BATCH = 16
# The number of ranks for which the settings of SOLVER are chosen. 0: they are not rescaled to the actual number.
_C.SOLVER.REFERENCE_WORLD_SIZE = 0
_C.SOLVER.BIAS_LR_FACTOR = 1.0
# None: the same as WEIGHT_DECAY.
_C.SOLVER.WEIGHT_DECAY_BIAS = None

_C.SOLVER.CLIP_GRADIENTS = CN({"ENABLED": False})
# "value" clips each element, "norm" each parameter's norm, "full_model" the norm over all parameters.
_C.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
_C.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
_C.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0

_C.SOLVER.AMP = CN({"ENABLED": False})

_C.TEST = CN()
# [[task, metric, expected value, tolerance], ...], compared with the results of the last evaluation.
_C.TEST.EXPECTED_RESULTS = []
# Iterations between evaluations; 0: only after the last one.
_C.TEST.EVAL_PERIOD = 0
_C.TEST.KEYPOINT_OKS_SIGMAS = []
_C.TEST.DETECTIONS_PER_IMAGE = 100

_C.TEST.AUG = CN({"ENABLED": False})
_C.TEST.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
_C.TEST.AUG.MAX_SIZE = 4000
_C.TEST.AUG.FLIP = True

_C.TEST.PRECISE_BN = CN({"ENABLED": False})
_C.TEST.PRECISE_BN.NUM_ITER = 200

_C.OUTPUT_DIR = "./output"
# Negative: a random seed.
_C.SEED = -1
_C.CUDNN_BENCHMARK = False
# The argument of torch.set_float32_matmul_precision. Empty: PyTorch's default.
_C.FLOAT32_PRECISION = ""
# Iterations between pictures of the training inputs in TensorBoard; 0: none.
_C.VIS_PERIOD = 0

# Free for research code that reads the configuration through ``global_cfg``.
_C.GLOBAL = CN()
_C.GLOBAL.HACK = 1.0
