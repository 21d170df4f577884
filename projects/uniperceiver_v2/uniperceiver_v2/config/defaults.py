"""The keys that this project adds to Detectron2's, with their defaults."""

from detectron2.config import CfgNode as CN

from ..data.datasets.held_out import STANDARD


def add_uniperceiver_v2_config(cfg: CN) -> None:
    """Add this project's keys to ``cfg`` in place, beside Detectron2's own."""
    _add_model_config(cfg)

    # The user names the nodes of the tasks. So the command line can override one setting of one task.
    cfg.TASKS = CN(new_allowed=True)
    cfg.TASKS.NAMES = []

    # The user's own datasets by name: a format and paths. uniperceiver_v2.data.datasets.custom has the formats.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)

    # Datasets whose images are never trained on, whatever dataset they come from: the field's test and validation
    # splits. Those of DATASETS.TEST are held out as well.
    cfg.DATASETS.HELD_OUT = list(STANDARD)

    cfg.PROCESSES = CN()
    # Seconds until a collective call of the processes fails, because one of them does not take part.
    cfg.PROCESSES.TIMEOUT = 1800
    # Seconds without a sign of life from a process until the others end the run.
    cfg.PROCESSES.SILENCE = 300

    cfg.SOLVER.OPTIMIZER = "TaskBalancedAdamW"
    # "unmixed": one batch of one task in an iteration, drawn with the probabilities s_k. "even": the same, with each
    # task's draws at nearly equal intervals. "mixed": a batch of each task, with losses weighted by s_k.
    cfg.SOLVER.SAMPLING = "unmixed"
    # The number of draws of a task in an iteration. The processes are split into as many groups. Each group computes
    # the gradient of its own draw, and all step by the mean over the draws.
    cfg.SOLVER.TASK_GROUPS = 1
    # The number of parts of an iteration's batch. They are processed one after the other, which saves memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Parameters, averages and moments are whole in each process ("none"), divided among all processes ("full"), or
    # among those of each machine ("hybrid").
    cfg.SOLVER.SHARDING = "none"
    # Processes send each other gradients of two bytes instead of four, and add them in that precision.
    cfg.SOLVER.REDUCE_IN_BFLOAT16 = False
    # The dtype of autocast, which Detectron2's SOLVER.AMP.ENABLED turns on: "bfloat16", or "float16" with scaled
    # gradients.
    cfg.SOLVER.AMP.PRECISION = "bfloat16"
    # A step with a loss or gradient that is not finite is skipped. Training stops after so many in a row.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10
    cfg.SOLVER.BETAS = [0.9, 0.999]
    cfg.SOLVER.EPS = 1e-8
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.TEXT_ENCODER_MULTIPLIER = 1.0
    # A block of these parts learns so many times as fast as the next one. The last block has the part's rate.
    cfg.SOLVER.BACKBONE_LAYER_DECAY = 1.0
    cfg.SOLVER.TEXT_ENCODER_LAYER_DECAY = 1.0
    cfg.SOLVER.DECODER_MULTIPLIER = 1.0  # of the unified decoder
    # Decay of the weights' exponential average, which is evaluated and saved as "model"; 0 turns averaging off.
    cfg.SOLVER.WEIGHT_AVERAGING = 0.0

    # Checkpoints are copied to the host's memory, and written by a thread while training goes on.
    cfg.SOLVER.CHECKPOINTS_IN_BACKGROUND = False
    # "file": a checkpoint is one file, which the first process writes. "parts": it is a directory, into which each
    # process writes its parts; with SOLVER.SHARDING only.
    cfg.SOLVER.CHECKPOINT_FORMAT = "file"
    # The number of checkpoints model_<iteration> that are kept, the newest ones; 0 keeps all.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # Training ends after so many evaluations in a row without a better TEST.BEST_METRIC; 0 for never. Those before the
    # metric first changes do not count.
    cfg.SOLVER.EARLY_STOPPING = 0

    # The weights with the best value of this metric are kept in model_best.pth. It is named as in metrics.json, such as
    # "boats_test/bbox/AP". "" keeps none. BEST_MODE is "max" or "min".
    cfg.TEST.BEST_METRIC = ""
    cfg.TEST.BEST_MODE = "max"
    # Images (or texts) of a batch in evaluation, over all ranks. The images of a batch have the same size, so that a
    # result does not depend on the other images of its batch.
    cfg.TEST.IMS_PER_BATCH = 8
    # Answers in evaluation are computed under autocast to SOLVER.AMP.PRECISION, whatever training does.
    cfg.TEST.AMP = CN()
    cfg.TEST.AMP.ENABLED = False
    # The folder of Stanford's models for SPICE, one of the metrics of captions. It is left out without them.
    cfg.TEST.SPICE_MODELS = ""

    # Unreadable images are skipped. Training stops when their share among all images seen exceeds this.
    cfg.DATALOADER.MAX_CORRUPT_SHARE = 0.01
    # The images of so many batches of a task are sorted by their aspect ratio and made batches anew, so that less of a
    # batch is padding; 0 for batches of random images. Data without sizes, and squares, are not sorted.
    cfg.DATALOADER.BATCHES_BY_SHAPE = 0
    # The share of a training dataset's annotations that may be left out because their box or shape cannot be used.
    # They are counted in the log. With 0, and in evaluation, the first one ends the run.
    cfg.DATALOADER.MAX_BAD_ANNOTATIONS = 0.0


def _add_model_config(cfg: CN) -> None:
    """Keys below ``MODEL.UNIPERCEIVER_V2``. The default sizes are those of the paper and of Mask DINO."""
    cfg.MODEL.UNIPERCEIVER_V2 = node = CN()
    # Training may start from a MODEL.WEIGHTS that fits the model in part only. The log lists what does not fit.
    node.WEIGHTS_MAY_DIFFER = False
    # Weights that are NaN or infinite are refused, but for this: for example, to look at what a run has come to.
    node.WEIGHTS_MAY_BE_NAN = False
    # Weights of other projects for the image encoder and the decoder: files, or directories in Hugging Face's form,
    # recognised by their keys. They are read where neither MODEL.WEIGHTS nor --resume gives the whole model.
    node.PRETRAINED = []
    node.EMBED_DIM = 768  # d, the width of the unified decoder and of all its inputs
    node.ATTENTION_POOLS = 8  # M' of equation (3)
    node.TEMPERATURE = 0.07  # τ at the start
    # Parts that recompute activations in the backward pass: "backbone", "region_network",
    # "text_encoder", "decoder".
    node.ACTIVATION_CHECKPOINTING = []
    # Parts that go through torch.compile: any of the same names.
    node.COMPILE = []
    # The maps of backbone and region network have the channels of a pixel side by side in memory, for GPUs.
    node.CHANNELS_LAST = False
    # On a GPU, tasks without regions launch the image encoder as CUDA graphs where their images have few sizes.
    node.CUDA_GRAPHS = False

    # A Hugging Face backbone: PATH is a directory with its configuration (and weights), or CONFIG has its fields.
    node.BACKBONE = CN()
    node.BACKBONE.PATH = ""
    node.BACKBONE.CONFIG = CN(new_allowed=True)
    node.BACKBONE.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    node.BACKBONE.NORM = ""  # replaces batch normalisation by "FrozenBN" or "GN"; "" keeps it

    # Stochastic depth: the share of samples that skip the last block, in training. Below 0 the model keeps its own.
    node.BACKBONE.DROP_PATH = -1.0

    node.TEXT_ENCODER = CN()
    node.TEXT_ENCODER.PATH = ""  # directory of a Hugging Face text encoder and its tokenizer

    # Candidates in training, such as a thousand class names or four thousand words.
    node.CANDIDATES = CN()
    # So many are encoded at a time, and again in the backward pass, which saves memory; 0 for all at once.
    node.CANDIDATES.AT_ONCE = 0
    # Each process of a task group encodes its share of the names, and all draw the same sample of the vocabulary.
    node.CANDIDATES.SPLIT = False

    node.DECODER = CN()
    node.DECODER.LAYERS = 6
    node.DECODER.HEADS = 12
    node.DECODER.FFN_DIM = 3072  # width of a feed-forward network, or of each of its experts
    # Experts of a feed-forward network (0 for a dense network), and the number of experts that process a token.
    node.DECODER.EXPERTS = 8
    node.DECODER.ACTIVE_EXPERTS = 2
    node.DECODER.COMPILE = False  # the same as "decoder" in COMPILE

    node.REGION = CN()
    node.REGION.DIM = 256
    node.REGION.MASK_DIM = 256  # width of the pixel embeddings
    node.REGION.HEADS = 8
    node.REGION.POINTS = 4  # sampling points of a head at each scale
    node.REGION.FFN_DIM = 2048
    node.REGION.ENCODER_LAYERS = 6
    node.REGION.DECODER_LAYERS = 9
    node.REGION.NUM_QUERIES = 300  # O, the number of proposals
    node.REGION.ANCHOR_SIZE = 0.05  # side of a token's anchor at the finest scale, as a share of the image
    node.REGION.FIRST_SCALE = 1  # the finest map of the backbone that is a scale; 0 makes a scale of each map
    node.REGION.EXTRA_SCALES = 1  # scales that strided convolutions add behind the coarsest map
    # Width of a map of the finest stride that enters the finest scale, and says in training where centres are; 0: none.
    node.REGION.FINE_DIM = 0
    node.REGION.OBJECTNESS_PARTS = 1  # an object is what is any of these; Mask DINO's classes are as many
    # How its weights have to be computed: "" as this project does, "mask_dino" or "mask_dino_mask2box".
    node.REGION.CONVENTIONS = ""
    node.REGION.BOXES_FROM_MASKS = True  # initial boxes of queries: around their masks, not as their tokens predict
    node.REGION.BOXES_AROUND_MASKS = False  # boxes of results: around their masks, not as the decoder predicts
    node.REGION.MASKS_IN_BOXES = False  # masks end at their boxes, so that they are learned with few images
    node.REGION.DENOISING_QUERIES = 100  # near misses of an image, about
    node.REGION.BOX_NOISE = 0.4

    node.CRITERION = CN()
    node.CRITERION.WEIGHTS = CN({"OBJECTNESS": 4.0, "BOX": 5.0, "GIOU": 2.0, "MASK": 5.0, "DICE": 5.0})
    node.CRITERION.COSTS = CN({"OBJECTNESS": 4.0, "BOX": 5.0, "GIOU": 2.0, "MASK": 5.0, "DICE": 5.0})
    node.CRITERION.NUM_POINTS = 12544  # points of a mask at which the mask losses are computed
    node.CRITERION.OVERSAMPLING = 3.0
    node.CRITERION.UNCERTAIN_SHARE = 0.75
    node.CRITERION.ONE_TO_MANY = 9  # tokens of the encoder that are matched to an object
