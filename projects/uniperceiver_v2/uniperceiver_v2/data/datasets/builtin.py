"""The datasets that this project registers, below the folder in DETECTRON2_DATASETS.

Files are read when a dataset is used. Detectron2 itself registers COCO and LVIS.
"""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_lvis_json

from .flickr30k_entities import register_flickr30k_entities
from .formats import register_captions, register_image_folder, register_proposals, register_text_lines
from .phrases import register_phrases
from .questions import register_questions
from .records import register_dataset
from .refer import register_refer
from .segments import register_class_maps, register_panoptic
from .shards import register_image_text_shards
from .text_shards import register_text_shards
from .videos import register_clips
from .visual_genome import register_region_captions, register_region_descriptions

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOTIONS = ("moving left", "moving right", "rising", "falling")  # of a digit in a clip
CLIP_CLASSES = tuple(f"a {name} {motion}" for name in DIGIT_NAMES for motion in MOTIONS)


def datasets_root() -> str:
    """The folder of all datasets, by Detectron2's rule."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def _prepared_by(program: str) -> str:
    """The command that prepares a dataset, for messages and for metadata."""
    return f"python datasets/prepare/{program}"


def register_digit_scenes(root: str, prefix: str = "") -> None:
    """Register all datasets of a tree that ``datasets/prepare_digit_scenes.py`` has written.

    Args:
        root: the tree.
        prefix: put before the names, so that several trees can be registered.
    """
    command = "python datasets/prepare_digit_scenes.py"
    if os.path.abspath(root) != os.path.abspath(os.path.join("datasets", "digit_scenes")):
        command += f" --output {root}"
    for split in ("train", "test"):
        images = os.path.join(root, "images", split)
        _register_instances(f"{prefix}digit_scenes_{split}", root, f"instances_{split}", images, command)
        captions = os.path.join(root, "annotations", f"captions_{split}.json")
        for what, evaluator_type in (("captions", "coco_caption"), ("retrieval", "retrieval")):
            register_captions(
                f"{prefix}digit_scenes_{what}_{split}",
                captions,
                images,
                evaluator_type=evaluator_type,
                scene_facts=os.path.join(root, "annotations", f"instances_{split}.json"),
                prepare_command=command,
            )
        register_phrases(
            f"{prefix}digit_scenes_phrases_{split}",
            os.path.join(root, "annotations", f"phrases_{split}.json"),
            images,
            instances_json=os.path.join(root, "annotations", f"instances_{split}.json"),
            prepare_command=command,
        )
        register_clips(
            f"{prefix}digit_clips_{split}",
            os.path.join(root, "annotations", f"clips_{split}.csv"),
            os.path.join(root, "clips", split),
            names=CLIP_CLASSES,
            prepare_command=command,
        )
        register_region_descriptions(
            f"{prefix}digit_scenes_regions_{split}",
            os.path.join(root, "annotations", f"region_descriptions_{split}.json"),
            os.path.join(root, "annotations", f"image_data_{split}.json"),
            os.path.join(root, "images"),
            evaluator_type="region_captions",
            prepare_command=command,
        )
        register_panoptic(
            f"{prefix}digit_scenes_panoptic_{split}",
            os.path.join(root, "annotations", f"panoptic_{split}.json"),
            os.path.join(root, "panoptic", split),
            images,
            prepare_command=command,
        )
        register_questions(
            f"{prefix}digit_scenes_questions_{split}",
            os.path.join(root, "annotations", f"questions_{split}.json"),
            os.path.join(root, "annotations", f"answers_{split}.json"),
            images,
            image_name="{:012d}.png",
            prepare_command=command,
        )
        corpus = os.path.join(root, "corpus", f"{split}.txt")
        register_text_lines(f"{prefix}digit_corpus_{split}", corpus, prepare_command=command)
        folder = os.path.join(root, "digits", split)
        register_image_folder(f"{prefix}digits_{split}", folder, DIGIT_NAMES, prepare_command=command)
    lvis_json = os.path.join(root, "annotations", "lvis_test.json")
    lvis_images = os.path.join(root, "images", "")  # ends with "/", as load_lvis_json appends "test/<file>"
    register_dataset(
        f"{prefix}digit_scenes_lvis_test",
        # Without the dataset's name, from which load_lvis_json would derive a version of LVIS.
        lambda: load_lvis_json(lvis_json, lvis_images),
        json_file=lvis_json,
        image_root=lvis_images,
        evaluator_type="lvis",
        thing_classes=list(DIGIT_NAMES),
        prepare_command=command,
    )


def _register_instances(name: str, root: str, annotations: str, images: str, command: str) -> None:
    json_file = os.path.join(root, "annotations", f"{annotations}.json")
    register_dataset(
        name,
        lambda: load_coco_json(json_file, images, name),
        json_file=json_file,
        image_root=images,
        evaluator_type="coco",
        thing_classes=list(DIGIT_NAMES),
        prepare_command=command,
    )


def register_imagenet(root: str) -> None:
    """Register ``imagenet_train`` and ``imagenet_val``. datasets/README.md shows the tree."""
    for split in ("train", "val"):
        register_image_folder(
            f"imagenet_{split}",
            os.path.join(root, split),
            names_file=os.path.join(root, "LOC_synset_mapping.txt"),
            prepare_command=_prepared_by("imagenet.py"),
        )


def register_coco_2017(root: str) -> None:
    """Register what Detectron2 does not register of COCO 2017: captions in COCO's own split, and class-agnostic
    proposals. datasets/README.md shows the files.

    Args:
        root: the folder of all datasets.
    """
    coco = os.path.join(root, "coco")
    for split in ("train", "val"):
        register_captions(
            f"coco_2017_captions_{split}",
            os.path.join(coco, "annotations", f"captions_{split}2017.json"),
            os.path.join(coco, f"{split}2017"),
            prepare_command=_prepared_by("coco.py"),
        )
    register_proposals(
        "coco_2017_proposals_val",
        os.path.join(coco, "annotations", "instances_val2017.json"),
        os.path.join(coco, "val2017"),
        prepare_command=_prepared_by("coco.py"),
    )


def register_karpathy(root: str) -> None:
    """Register COCO's captions and Flickr30k in Karpathy's splits. datasets/README.md shows the files.

    Args:
        root: the folder of all datasets.
    """
    coco, flickr = os.path.join(root, "coco"), os.path.join(root, "flickr30k")
    coco_json = os.path.join(coco, "annotations", "dataset_coco.json")
    flickr_json = os.path.join(flickr, "dataset_flickr30k.json")
    flickr_images = os.path.join(flickr, "flickr30k-images")
    coco_command = _prepared_by("karpathy.py coco")
    for split in ("train", "val", "test"):
        register_captions(
            f"coco_2014_captions_karpathy_{split}", coco_json, coco, karpathy_split=split, prepare_command=coco_command
        )
    for split in ("val", "test"):
        settings = {"karpathy_split": split, "evaluator_type": "retrieval"}
        register_captions(
            f"coco_2014_retrieval_karpathy_{split}", coco_json, coco, prepare_command=coco_command, **settings
        )
        register_captions(
            f"flickr30k_retrieval_karpathy_{split}",
            flickr_json,
            flickr_images,
            prepare_command=_prepared_by("karpathy.py flickr30k"),
            **settings,
        )


# Of refer: the folder, who divided it, and the splits.
_REFER = (
    ("refcoco", "unc", ("train", "val", "testA", "testB")),
    ("refcoco", "google", ("train", "val", "test")),
    ("refcoco+", "unc", ("train", "val", "testA", "testB")),
    ("refcocog", "umd", ("train", "val", "test")),
    ("refcocog", "google", ("train", "val")),
)


def register_grounding_sets(root: str) -> None:
    """Register RefCOCO, RefCOCO+, RefCOCOg, Visual Genome's regions and Flickr30k Entities.

    datasets/README.md shows the files.

    Args:
        root: the folder of all datasets.
    """
    for folder, division, splits in _REFER:
        tree = os.path.join(root, "refer", folder)
        for split in splits:
            register_refer(
                f"{folder}_{division}_{split}",
                os.path.join(tree, f"refs({division}).p"),
                os.path.join(tree, "instances.json"),
                os.path.join(root, "coco", "train2014"),
                split,
                prepare_command=_prepared_by("refcoco.py"),
            )
    genome = os.path.join(root, "visual_genome")
    genome_files = [os.path.join(genome, name) for name in ("region_descriptions.json", "image_data.json")]
    command = _prepared_by("visual_genome.py")
    register_region_descriptions("visual_genome_regions_train", *genome_files, genome, prepare_command=command)
    register_region_captions("visual_genome_captions_train", *genome_files, genome, prepare_command=command)
    for split in ("train", "val", "test"):
        register_region_descriptions(
            f"visual_genome_region_captions_{split}",
            *genome_files,
            genome,
            split=(os.path.join(genome, "densecap_splits.json"), split),
            evaluator_type="region_captions",
            prepare_command=command,
        )
    flickr = os.path.join(root, "flickr30k")
    for split in ("train", "val", "test"):
        register_flickr30k_entities(
            f"flickr30k_entities_{split}",
            os.path.join(flickr, "entities"),
            os.path.join(flickr, "flickr30k-images"),
            split,
            prepare_command=_prepared_by("flickr30k_entities.py"),
        )


def register_segmentation(root: str) -> None:
    """Register COCO's panoptic annotations and ADE20k's scene parsing. datasets/README.md shows the files.

    Args:
        root: the folder of all datasets.
    """
    coco, ade = os.path.join(root, "coco"), os.path.join(root, "ADEChallengeData2016")
    for split in ("train", "val"):
        register_panoptic(
            f"coco_panoptic_{split}",
            os.path.join(coco, "annotations", f"panoptic_{split}2017.json"),
            os.path.join(coco, f"panoptic_{split}2017"),
            os.path.join(coco, f"{split}2017"),
            prepare_command=_prepared_by("coco_panoptic.py"),
        )
    for split, folder in (("train", "training"), ("val", "validation")):
        register_class_maps(
            f"ade20k_{split}",
            os.path.join(ade, "annotations", folder),
            os.path.join(ade, "images", folder),
            os.path.join(ade, "objectInfo150.txt"),
            prepare_command=_prepared_by("ade20k.py"),
        )


def register_kinetics(root: str) -> None:
    """Register ``kinetics400_train`` and ``kinetics400_val``. datasets/README.md shows the files.

    Args:
        root: the folder of all datasets.
    """
    folder = os.path.join(root, "kinetics400")
    for split in ("train", "val"):
        files = os.path.join(folder, "annotations", f"{split}.csv"), os.path.join(folder, split)
        register_clips(f"kinetics400_{split}", *files, prepare_command=_prepared_by("kinetics.py"))


def register_vqa(root: str) -> None:
    """Register ``vqa_v2_train`` and ``vqa_v2_val``. datasets/README.md shows the files.

    Args:
        root: the folder of all datasets.
    """
    for split in ("train", "val"):
        register_questions(
            f"vqa_v2_{split}",
            os.path.join(root, "vqa", f"v2_OpenEnded_mscoco_{split}2014_questions.json"),
            os.path.join(root, "vqa", f"v2_mscoco_{split}2014_annotations.json"),
            os.path.join(root, "coco", f"{split}2014"),
            image_name=f"COCO_{split}2014_{{:012d}}.jpg",
            prepare_command=_prepared_by("vqa.py"),
        )


def register_web_pairs(root: str) -> None:
    """Register the paper's sets of image-text pairs as img2dataset downloads them. datasets/README.md shows the trees.

    Args:
        root: the folder of all datasets.
    """
    for name in ("cc3m", "cc12m", "sbu", "yfcc"):
        command = _prepared_by(f"web_pairs.py {name}")
        register_image_text_shards(f"{name}_train", os.path.join(root, name, "*.tar"), prepare_command=command)


def register_corpora(root: str) -> None:
    """Register the paper's corpora as ``datasets/prepare/corpus.py`` writes them.

    Args:
        root: the folder of all datasets.
    """
    for name in ("bookcorpus", "wikipedia"):
        command = _prepared_by(f"corpus.py {name} TEXTS")
        register_text_shards(f"{name}_train", os.path.join(root, name, "*.txt"), prepare_command=command)


def _describe_detectron2s() -> None:
    """Give the datasets that Detectron2 registers the command that prepares them."""
    for prefix, program in (("coco_2017", "coco.py"), ("lvis_v1", "lvis_v1.py")):
        for name in (f"{prefix}_{split}" for split in ("train", "val")):
            MetadataCatalog.get(name).prepare_command = _prepared_by(program)


def register_all(root: str) -> None:
    """Register all datasets of this file.

    Args:
        root: the folder of all datasets.
    """
    register_digit_scenes(os.path.join(root, "digit_scenes"))
    register_imagenet(os.path.join(root, "imagenet"))
    register_coco_2017(root)
    register_karpathy(root)
    register_web_pairs(root)
    register_corpora(root)
    register_grounding_sets(root)
    register_segmentation(root)
    register_kinetics(root)
    register_vqa(root)
    _describe_detectron2s()


register_all(datasets_root())
