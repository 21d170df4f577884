"""The keys that this project adds to Detectron2's, with their defaults."""

from detectron2.config import CfgNode as CN


def add_uniperceiver_v2_config(cfg: CN) -> None:
    """Add this project's keys to ``cfg`` in place, beside Detectron2's own."""
    _add_model_config(cfg)

    # Tasks are nodes of the user's own naming, so that the command line can override one number of one task.
    cfg.TASKS = CN(new_allowed=True)
    cfg.TASKS.NAMES = []

    cfg.SOLVER.OPTIMIZER = "TaskBalancedAdamW"
    # "unmixed": the batch of one task an iteration. "mixed": those of all tasks, their losses weighed by s_k.
    cfg.SOLVER.SAMPLING = "unmixed"
    # Parts that an iteration's batch is worked through in, one after the other, to save memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Detectron2's SOLVER.AMP.ENABLED turns autocast on: "bfloat16", or "float16" with scaled gradients.
    cfg.SOLVER.AMP.PRECISION = "bfloat16"
    # Steps whose loss or gradient is not finite are skipped and counted; after so many in a row training stops.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10
    cfg.SOLVER.BETAS = [0.9, 0.999]
    cfg.SOLVER.EPS = 1e-8
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.TEXT_ENCODER_MULTIPLIER = 1.0
    cfg.SOLVER.DECODER_MULTIPLIER = 1.0  # of the unified decoder
    cfg.SOLVER.GATE_MULTIPLIER = 1.0  # of the routers of its Conditional MoE, on top of the decoder's
    # Iterations for which the unified decoder stays as it starts, until what it is given tells candidates apart.
    cfg.SOLVER.DECODER_DELAY = 0
    # Decay of the exponential average of the weights that is evaluated and saved as "model"; 0 turns it off.
    cfg.SOLVER.WEIGHT_AVERAGING = 0.0

    # Images (or texts) of a batch in evaluation, over all ranks. Batches hold images of one size, so that a result does
    # not depend on which images it is computed with.
    cfg.TEST.IMS_PER_BATCH = 8

    # Unreadable images are skipped and counted; past this share of those seen, training stops.
    cfg.DATALOADER.MAX_CORRUPT_SHARE = 0.01


def _add_model_config(cfg: CN) -> None:
    """Sizes as the paper and Mask DINO have them."""
    cfg.MODEL.UNIPERCEIVER_V2 = node = CN()
    node.EMBED_DIM = 768  # d, the width of the unified decoder and of all that enters it
    node.ATTENTION_POOLS = 8  # M' of equation (3)
    node.TEMPERATURE = 0.07  # τ at the start
    # Parts that compute their activations twice instead of keeping them: "backbone", "region_network", "decoder".
    node.ACTIVATION_CHECKPOINTING = []

    # A Hugging Face backbone: a directory with its configuration (and weights), or the configuration's fields.
    node.BACKBONE = CN()
    node.BACKBONE.PATH = ""
    node.BACKBONE.CONFIG = CN(new_allowed=True)
    node.BACKBONE.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    node.BACKBONE.NORM = ""  # what replaces batch normalisation: "" (nothing), "FrozenBN" or "GN"

    node.TEXT_ENCODER = CN()
    node.TEXT_ENCODER.PATH = ""  # directory of a Hugging Face text encoder and its tokenizer

    node.DECODER = CN()
    node.DECODER.LAYERS = 6
    node.DECODER.HEADS = 12
    node.DECODER.FFN_DIM = 3072  # width of a feed-forward network, or of each of its experts
    # Experts of a feed-forward network, and how many of them a token goes through; no experts: a dense network.
    node.DECODER.EXPERTS = 8
    node.DECODER.ACTIVE_EXPERTS = 2
    node.DECODER.COMPILE = False  # its layers by torch.compile

    node.REGION = CN()
    node.REGION.DIM = 256
    node.REGION.MASK_DIM = 256  # width of the pixel embeddings
    node.REGION.HEADS = 8
    node.REGION.POINTS = 4  # sampling points of a head at a scale
    node.REGION.FFN_DIM = 2048
    node.REGION.ENCODER_LAYERS = 6
    node.REGION.DECODER_LAYERS = 9
    node.REGION.NUM_QUERIES = 300  # O
    node.REGION.ANCHOR_SIZE = 0.05  # side of a token's anchor at the finest scale, as a share of the image
    node.REGION.DENOISING_GROUPS = 5
    node.REGION.BOX_NOISE = 0.4

    node.CRITERION = CN()
    node.CRITERION.WEIGHTS = CN({"OBJECTNESS": 4.0, "BOX": 5.0, "GIOU": 2.0, "MASK": 5.0, "DICE": 5.0})
    node.CRITERION.COSTS = CN({"OBJECTNESS": 4.0, "BOX": 5.0, "GIOU": 2.0, "MASK": 5.0, "DICE": 5.0})
    node.CRITERION.NUM_POINTS = 12544  # of the mask losses, for each mask
    node.CRITERION.OVERSAMPLING = 3.0
    node.CRITERION.UNCERTAIN_SHARE = 0.75
    node.CRITERION.ONE_TO_MANY = 9  # tokens of the encoder that answer for an object
