"""A user's script as the official notebooks have it; the tests fill in where the names come from.

`{package}` is the package, `{tensor}` makes a tensor of an array. It prints its results as JSON.
"""

SCRIPT = """
import json
import sys

import numpy as np

from {package} import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

{setup}
device = "cpu"
sam = sam_model_registry["vit_t"](checkpoint=sys.argv[1])
sam.to(device=device)
sam.eval()
image = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
found = {{"threshold": sam.mask_threshold, "format": sam.image_format, "device": str(sam.device)}}


def summary(masks, scores, low_res):
    return {{
        "shape": list(masks.shape),
        "kind": str(masks.dtype),
        "areas": masks.reshape(-1, 90 * 120).sum(1).tolist(),
        "scores": scores.reshape(-1).tolist(),
        "low_res": [list(low_res.shape), float(low_res.mean()), float(low_res.std())],
    }}


# One prompt after the other.
predictor = SamPredictor(sam)
predictor.set_image(image)
found["state"] = [
    predictor.is_image_set,
    list(predictor.original_size),
    list(predictor.input_size),
    list(predictor.features.shape),
    str(predictor.device),
]
found["embedding"] = float(predictor.get_image_embedding().cpu().numpy().std())
point, label = np.array([[50, 37]]), np.array([1])
masks, scores, logits = predictor.predict(
    point_coords=point, point_labels=label, multimask_output=True
)
found["point"] = summary(masks, scores, logits)
best = logits[np.argmax(scores), :, :]
found["again"] = summary(
    *predictor.predict(
        point_coords=point,
        point_labels=label,
        mask_input=best[None, :, :],
        multimask_output=False,
    )
)
found["box"] = summary(
    *predictor.predict(
        point_coords=None,
        point_labels=None,
        box=np.array([20, 10, 80, 70]),
        multimask_output=False,
    )
)

# A batch of boxes.
boxes = {tensor}(np.array([[20, 10, 80, 70], [5, 5, 60, 40]], np.float32))
transformed_boxes = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
masks, scores, logits = predictor.predict_torch(
    point_coords=None,
    point_labels=None,
    boxes=transformed_boxes,
    multimask_output=False,
)
found["boxes"] = summary(*(x.cpu().numpy() for x in (masks, scores, logits)))

# Images of two sizes with their prompts, in one call.
def prepared(picture):
    return {tensor}(sam_transform.apply_image(picture).transpose(2, 0, 1).copy())


sam_transform = predictor.transform
tall = np.ascontiguousarray(image.transpose(1, 0, 2))
points = np.array([[[20.0, 30.0]], [[60.0, 50.0]]])
batch = [
    {{"image": prepared(image), "boxes": transformed_boxes, "original_size": image.shape[:2]}},
    {{
        "image": prepared(tall),
        "point_coords": {tensor}(
            sam_transform.apply_coords(points, tall.shape[:2]).astype(np.float32)
        ),
        "point_labels": {tensor}(np.ones((2, 1), np.int32)),
        "original_size": tall.shape[:2],
    }},
]
for number, output in enumerate(sam(batch, multimask_output=True)):
    keys = ("masks", "iou_predictions", "low_res_logits")
    found[f"batch{{number}}"] = summary(*(output[key].cpu().numpy() for key in keys))

# The image as a tensor, then forgotten.
predictor.set_torch_image(prepared(image)[None], image.shape[:2])
found["torch_image"] = float(predictor.get_image_embedding().cpu().numpy().std())
predictor.reset_image()
found["reset"] = [predictor.is_image_set, predictor.features is None]

# Everything in the image.
for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
    generator = SamAutomaticMaskGenerator(
        model=sam,
        points_per_side=2,
        pred_iou_thresh=-100.0,
        stability_score_thresh=0.0,
        box_nms_thresh=0.9,
        crop_n_layers=int(mode == "coco_rle"),
        crop_n_points_downscale_factor=2,
        min_mask_region_area=30,
        output_mode=mode,
    )
    records = generator.generate(image)
    found[mode] = []
    for record in sorted(records, key=lambda x: (x["area"], x["predicted_iou"]), reverse=True):
        segmentation = record.pop("segmentation")
        if mode == "binary_mask":
            record["segmentation"] = [str(segmentation.dtype), int(segmentation.sum())]
        else:
            record["segmentation"] = [sorted(segmentation), list(segmentation["size"])]
        found[mode].append(record)
print(json.dumps(found))
"""
