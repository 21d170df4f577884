"""Captions of regions, by the metrics of captions."""

from .caption_metrics import caption_metrics
from .gathering import GatheringEvaluator

_ANOTHERS = "region caption (another region's)"


class RegionCaptionEvaluator(GatheringEvaluator):
    """BLEU, METEOR, ROUGE-L and CIDEr in percent over all regions, see :func:`~.caption_metrics.caption_metrics`.

    The row "region caption (another region's)" is what one gets by chance: the reference of another region in place of
    the model's caption, in a fixed order.

    Args:
        dataset_name: a registered dataset of images with captions of regions.
        output_folder: for ``results.json``, and for ``predictions.json``, which lists the regions of every image, each
            with its box (x0, y0, x1, y1 in 0..1 of the image), its caption and its references. None writes no files.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id", "file_name", "regions" [R,4] and "references".
            outputs: predictions with "captions" and "log_likelihoods" of the R regions.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            parts = zip(
                sample["regions"].tolist(),
                output["captions"],
                output["log_likelihoods"],
                sample["references"],
                strict=True,
            )
            regions = [
                {"box": box, "caption": caption, "log_likelihood": float(value), "references": list(references)}
                for box, caption, value, references in parts
            ]
            self._records.append({"image_id": sample["image_id"], "file_name": sample["file_name"], "regions": regions})

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        self._write("predictions.json", records)
        regions = [region for record in records for region in record["regions"]]
        references = {number: region["references"] for number, region in enumerate(regions)}
        rows = {
            "region caption": {number: region["caption"] for number, region in enumerate(regions)},
            # Half the list away, so that it is a region of another image.
            _ANOTHERS: {n: regions[(n + len(regions) // 2) % len(regions)]["references"][0] for n in references},
        }
        return caption_metrics(references, rows)
