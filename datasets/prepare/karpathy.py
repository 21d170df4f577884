"""Prepares COCO Caption and Flickr30k with the splits of Karpathy and Fei-Fei.

    python datasets/prepare/karpathy.py [coco] [flickr30k] [--root DIR] [--downloads DIR]

Without a name it prepares both. COCO's images may be those of 2014, or those of 2017, to which it makes links.
"""

import json

from common import Archive, Folders, arguments, link_images_of_2014, run, unpack_all

PLACE = "https://cs.stanford.edu/people/karpathy/deepimagesent/"
SPLITS = "caption_datasets.zip"
ARCHIVES = {
    "coco": (
        Archive(
            SPLITS, PLACE, "37 MB", "coco/annotations", ("coco/annotations/dataset_coco.json",), "dataset_coco.json"
        ),
    ),
    "flickr30k": (
        Archive(SPLITS, PLACE, "37 MB", "flickr30k", ("flickr30k/dataset_flickr30k.json",), "dataset_flickr30k.json"),
        Archive(
            "flickr30k-images.tar.gz",
            "https://shannon.cs.illinois.edu/DenotationGraph/ (a form asks who you are)",
            "4.4 GB",
            "flickr30k",
            ("flickr30k/flickr30k-images",),
        ),
    ),
}


def prepare(folders: Folders, options) -> str:
    names = options.names or list(ARCHIVES)
    unpack_all([archive for name in names for archive in ARCHIVES[name]], folders)
    told = [f"{' and '.join(names)} are there" if len(names) > 1 else f"{names[0]} is there"]
    if "coco" in names:
        content = json.loads((folders.root / "coco/annotations/dataset_coco.json").read_text(encoding="utf-8"))
        images = ((image["filepath"], image["filename"]) for image in content["images"])
        told.append(link_images_of_2014(folders.root, images))
    checked = {"coco": "coco_2014_captions_karpathy_train", "flickr30k": "flickr30k_retrieval_karpathy_test"}
    told.append(f"check with: python datasets/check.py {' '.join(checked[name] for name in names)}")
    return "; ".join(told)


if __name__ == "__main__":
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*ARCHIVES, []], help="what to prepare (default: both)")
    run(parser, prepare)
