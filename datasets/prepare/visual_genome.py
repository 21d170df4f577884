"""Prepares Visual Genome: images and region descriptions, which serve as captions and as phrases.

python datasets/prepare/visual_genome.py [--root DIR] [--downloads DIR]
"""

from common import Archive, arguments, run, unpack_all

PLACE = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
DENSECAP = "https://github.com/jcjohnson/densecap (the folder info), the splits for captions of regions"
FOLDER = "visual_genome"
ARCHIVES = (
    Archive("image_data.json.zip", PLACE, "1.7 MB", FOLDER, (f"{FOLDER}/image_data.json",)),
    Archive("region_descriptions.json.zip", PLACE, "121 MB", FOLDER, (f"{FOLDER}/region_descriptions.json",)),
    Archive("images.zip", PLACE, "9.2 GB", FOLDER, (f"{FOLDER}/VG_100K",)),
    Archive("images2.zip", PLACE, "5.5 GB", FOLDER, (f"{FOLDER}/VG_100K_2",)),
    Archive("densecap_splits.json", DENSECAP, "1 MB", FOLDER, (f"{FOLDER}/densecap_splits.json",)),
)


def prepare(folders, options) -> str:
    unpack_all(ARCHIVES, folders)
    return "Visual Genome is there; check it with: python datasets/check.py visual_genome_captions_train"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
