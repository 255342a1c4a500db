"""Masks by their names, as data sets name them, and what only sounds like one."""

import pytest

from mediffusion_core.data.masks import find_derived, find_masks

IMAGES = [f"{label}/{number}.png" for label in "ab" for number in range(12)]


@pytest.mark.parametrize(
    "name",
    [
        "a/{}_mask.png", "a/{}-mask.tif", "a/{}mask.png", "a/{}.mask.png", "a/{} (mask).png",
        "a/{}_MASK.png", "a/{}_mask_2 (1).png", "a/{}_left_mask.png", "a/{}_leftMask.png",
        "a/{}_segmentation.png", "a/{}_seg_0.png", "a/{}_segmented.png", "a/{}_label.png",
        "a/{}_lbl.png", "a/{}_GT.png", "a/{}_gt.png", "a/{}_ground_truth.png",
        "a/{}_groundtruth.png",
        "a/{}_roi.png", "a/{}_contour.png", "a/{}_outline.png", "a/{}_annotation.png",
        "a/{}_anno.png", "a/{}_manual1.png", "a/{}_lesion.png", "a/{}_msk.png", "a/{}_binary.png",
        "a/{}_superpixels.png", "a/{}_overlay.png", "a/{}_heatmap.png", "a/{}_mask_overlay.png",
        "a/Mask{}.png", "a/mask-{}.png", "a/GT_{}.png", "a/label{}.png",
        "masks/{}.png", "a/masks/{}_x.png", "mask/{}.png", "Masks_png/{}.png", "a_mask/{}.png",
        "a mask/{}.png", "masks2/{}.png", "normal_masks/{}.png", "ManualMask/leftMask/{}.png",
        "lungmask/{}.png", "SegmentationClass/{}.png", "Segmentation_masks/{}.png",
        "Ground Truth/{}.png", "GroundTruth_png/{}.png", "gt/a/{}.png", "labels/{}.png",
        "labelsTr/{}.png", "label/{}.png", "annotation/{}.png", "annotations/{}.png",
        "1st_manual/{}_manual1.png", "contour/{}.png", "overlays/{}.png", "truth/{}.png",
        "labelcol/{}.png", "msk/{}.png", "roi/{}.png",
    ],
)  # fmt: skip
def test_a_mask_is_found_by_its_name(name: str) -> None:
    masks = [name.format(number) for number in range(12)]
    assert sorted(find_masks([*IMAGES, *masks])) == sorted(masks)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a/img_00{}.png", "a/mask_00{}.png"),
        ("p{}/image.png", "p{}/mask.png"),
        ("t/training_image_{}.png", "t/training_mask_{}.png"),
        ("a/ISIC_000{}.jpg", "a/ISIC_000{}_segmentation.png"),
        ("a/benign ({}).png", "a/benign ({})_mask_1.png"),
        ("a/p{}_left.png", "a/p{}_left_mask.png"),
        ("a/x{}.Normal.png", "a/x{}.Normal.mask.png"),
        ("a/数据{}.png", "a/数据{}_mask.png"),
    ],
)
def test_image_and_mask_may_both_say_what_they_are(image: str, mask: str) -> None:
    images, masks = ([name.format(number) for number in range(4)] for name in (image, mask))
    assert sorted(find_masks([*images, *masks])) == sorted(masks)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["with_mask/with_mask_{}.png", "without_mask/without_mask_{}.png"], []),
        (["with_mask/{}.png", "without_mask/{}.png", "nomask/{}.png"], []),
        (["mask/mask_{}.png", "plain/{}.png"], ["mask", "plain"]),
        (["lesion/lesion_{}.png", "normal/{}.png"], []),
        (["damask/{}.png", "plain/{}.png"], []),
        (["label_0/{}.png", "label_1/{}.png"], []),
        (["a/x{}_mask.png", "b/{}.png"], []),
        (["manual/x{}.png", "b/{}.png"], []),
    ],
)
def test_what_only_sounds_like_a_mask_is_an_image(names: list[str], classes: list[str]) -> None:
    images = [name.format(number) for name in names for number in range(9)]
    assert find_masks(images, classes) == []


def test_pictures_called_as_others_with_something_added_are_found() -> None:
    drawn = [f"a/{number}_lm.png" for number in range(12)]
    assert find_derived([*IMAGES, *drawn]) == {"_lm": sorted(drawn, key=drawn.index)}
    numbered = [f"a/p{patient}_{number}.png" for patient in range(3) for number in range(3)]
    assert find_derived([*numbered, "a/p1.png", "a/0 (copy).png", *IMAGES]) == {}
